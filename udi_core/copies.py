"""Copies of images on a node's own disk, for shared file systems that do not bear many nodes reading at once.

Who mounts an image on a node takes the copy, if there is one, in the place of the store's file.  A copy is seen whole
and checked, or not at all: it comes under another name, and is renamed when its digest is right.

Layout below the node directory::

    copies/<hex of the image>.squashfs
"""

from __future__ import annotations

import os

from udi_core.contexts import suppress

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable

    from udi_core.store import StoredImage

_SUFFIX = ".squashfs"


def find(node_dir: str, digest: str) -> str:
    """The path of a copy, or "" if this node has none."""
    path = _path(node_dir, digest)
    return path if os.path.isfile(path) else ""


def adopt(node_dir: str, image: StoredImage, part: str) -> str:
    """Check the file ``part``, which must be on the same file system, and make it this node's copy; its path.

    ``part`` is gone afterwards, whatever happens.  A copy that is there already stays in use by those who use it.

    Raises:
        CorruptImage: it is not what the store says the image is.
        StoreError: it is not there.
    """
    from dataclasses import replace

    from udi_core.errors import StoreError
    from udi_core.store import sync, verify

    if not os.path.exists(part):
        raise StoreError(
            "This node has not got its copy of the image",
            f"{part} is not there; another node took it if {os.path.dirname(part)} is not each node's own.",
            "Let UDI_NODE_DIR name a directory on the node's own disk.",
        )
    try:
        verify(replace(image, squashfs=part))
        path = _path(node_dir, image.digest)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        os.chmod(part, 0o400)
        sync(part)  # or a crash leaves the name and not the bytes, and nobody checks them again
        os.rename(part, path)
        return path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)


def clean(node_dir: str, in_use: Callable[[str], bool]) -> None:
    """Remove the copies of images that are not in use, by their digests; idempotent."""
    directory = os.path.join(node_dir, "copies")
    with suppress(OSError):
        for name in os.listdir(directory):
            if not in_use("sha256:" + name.removesuffix(_SUFFIX)):
                os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


def _path(node_dir: str, digest: str) -> str:
    return os.path.join(node_dir, "copies", digest.rpartition(":")[2] + _SUFFIX)
