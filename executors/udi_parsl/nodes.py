"""Images before tasks: pulled ahead on the submit side, mounted once on each node before its workers start."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence

from parsl.launchers.base import Launcher

from udi_core import Config, ImageReference, ImageStore, ProgressSink, StoredImage, ignore, load_config
from udi_parsl.images import Wish


def prefetch(
    *references: str | Mapping[str, str],
    platform: str | None = None,
    variants: Sequence[str] = (),
    config: Config | None = None,
    progress: ProgressSink = ignore,
) -> list[StoredImage]:
    """Pull images now, so that the first tasks need not wait; idempotent.

    The arguments are those of :func:`udi_parsl.image`; whatever a node may choose is pulled, and each image is in the
    result once.

    Raises:
        UdiError: the first image that cannot be pulled.
    """
    config = config or load_config()
    store = ImageStore(config.store)
    wishes = [Wish.parse(each, platform, tuple(variants)) for each in references]
    found = [image for wish in dict.fromkeys(wishes) for image in wish.pull(store, config, progress).values()]
    return list({image.digest: image for image in found}.values())


class WarmLauncher(Launcher):
    """A launcher that has images mounted on every node of a block before its workers start.

    ::

        SlurmProvider(launcher=WarmLauncher(SrunLauncher(), "docker:ghcr.io/lab/reco:2.1"))

    ``worker_init`` does so too, but a provider runs it on the first node of a block only.  The images must be in the
    store; a node that cannot mount one goes on, and its tasks will say why.
    """

    def __init__(self, launcher: Launcher, *references: str) -> None:
        super().__init__(debug=launcher.debug)
        self.launcher = launcher
        self.references = references

    def __call__(self, command: str, tasks_per_node: int, nodes_per_block: int, script_dir: str = "") -> str:
        """The lines of the inner launcher."""
        warm = f"{_warm(self.references)}\n" if self.references else ""
        return str(self.launcher(warm + command, tasks_per_node, nodes_per_block, script_dir))


def worker_init(*references: str, before: str = "") -> str:
    """Shell lines for a provider's ``worker_init``: mount images on the node before its workers start.

    For blocks of one node; :class:`WarmLauncher` reaches all nodes of larger ones.  ``before`` are lines to run first
    (``module load …``).  A node that cannot mount goes on: its tasks will say why.
    """
    return f"{before}\n{_warm(references)}\n".lstrip("\n")


def _warm(references: Sequence[str]) -> str:
    images = " ".join(shlex.quote(str(ImageReference.parse(each))) for each in references)
    return f"{shlex.quote(sys.executable)} -m udi_core node warm --no-pull {images} || true"
