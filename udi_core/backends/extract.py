"""The image unpacked into a directory of node-local disk: the last resort, slow once and then fast."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from udi_core import _process
from udi_core.backends import Held, Place
from udi_core.errors import MountError
from udi_core.node_files import remove_tree

if TYPE_CHECKING:
    from udi_core.config import Config


def check(squashfs: str, config: Config) -> None:
    """See :class:`udi_core.backends.Backend`."""
    _process.require_tool("unsquashfs", reason="unpack images where nothing can be mounted")


def mount(squashfs: str, place: Place, config: Config) -> Held:
    """See :class:`udi_core.backends.Backend`."""
    unsquashfs = _process.require_tool("unsquashfs", reason="unpack images where nothing can be mounted")
    temporary = place.root + ".part"
    remove_tree(temporary)
    try:
        done = _process.run([unsquashfs, "-no-progress", "-no-xattrs", "-d", temporary, squashfs], check=False)
        # Status 2 and a message for each: an ordinary user can neither make devices nor give files away.  A file
        # that could not be written whole has the same status, so the message decides.
        said = (done.stderr + done.stdout).decode(errors="replace")
        lost = [line for line in said.splitlines() if "failed to write file" in line or "No space left" in line]
        if done.returncode not in (0, 2) or lost or not os.path.isdir(temporary):
            raise MountError(
                "the image cannot be unpacked",
                lost[0] if lost else _process.tail(done.stderr or done.stdout, 2),
                "Set UDI_NODE_DIR to a node-local directory with room for the whole image.",
            )
        os.rmdir(place.root)
        os.rename(temporary, place.root)
    finally:
        remove_tree(temporary)
    return Held()


def unmount(held: Held, place: Place) -> None:
    """See :class:`udi_core.backends.Backend`."""
    remove_tree(place.root)
