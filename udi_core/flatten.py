"""Merge the layers of an image into one tar stream without unpacking anything to disk.

The layers of nearly all images can be read from the top (see :mod:`udi_core.merge`): an entry is emitted the first
time its path is seen, unless a layer above hid it, and what is read once is never needed again.  A few images have
layers in which an entry means something else than it says: it lies below a symlink, is written twice, or is a hard
link to what is no longer there.  For these there is :mod:`udi_core.replay`, which needs to read each layer twice.

Source: OCI image-spec layer.md, "Whiteouts" and "Applying Changesets".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from udi_core.changeset import Changes, FlattenReport, Limits
from udi_core.layer import LayerInput
from udi_core.merge import NeedsReplay, merge
from udi_core.progress import Progress, ProgressSink, ignore
from udi_core.replay import replay

__all__ = ["FlattenReport", "Limits", "flatten"]


def flatten(
    layers: Sequence[LayerInput],
    start: Callable[[], Callable[[bytes | memoryview], object]],
    *,
    limits: Limits | None = None,
    rewrite: bool = False,
    progress: ProgressSink = ignore,
) -> FlattenReport:
    """Merge ``layers`` (lowest first, as in the manifest) into one tar stream.

    The result is the tree that ``umoci unpack`` makes as root, as far as a squashfs can hold it.  Progress is in bytes
    of the compressed layers.

    Args:
        start: begins a new output and returns its ``write``.  It is called once, or once more if the merge has to
            begin anew, and must then throw away what was written before.
        rewrite: write all headers anew, for readers that make of them what is not meant.  Otherwise headers that
            all readers understand alike pass as they are.

    Raises:
        CorruptImage: a layer is truncated or malformed, or a digest is wrong.
        HostileImage: a layer tries to leave the image, or exceeds ``limits``.
        UnsupportedImage: a layer holds what is no part of a file tree.
    """
    limits = limits or Limits()
    try:
        return merge(Changes(layers, start(), limits, progress, rewrite=rewrite))
    except NeedsReplay as reason:
        progress(Progress("flatten", "layers again", 0, None, note=f"{reason}"))
    return replay(Changes(layers, start(), limits, progress, again=True, rewrite=rewrite))
