"""The image unpacked into a directory of node-local disk: the last resort, slow once and then fast."""

from __future__ import annotations

import os
import shutil

from udi_core import _process
from udi_core.backends import Held, Place


def mount(squashfs: str, place: Place) -> Held:
    """See :class:`udi_core.backends.Backend`."""
    unsquashfs = _process.require_tool("unsquashfs", reason="unpack images where nothing can be mounted")
    temporary = place.root + ".part"
    remove(temporary)
    try:
        done = _process.run([unsquashfs, "-no-progress", "-no-xattrs", "-d", temporary, squashfs], check=False)
        # 2: something could not be set (owners, devices), as always for an ordinary user; 1: data is missing.
        if done.returncode not in (0, 2):
            raise OSError(_process.tail(done.stderr or done.stdout))
        os.rmdir(place.root)
        os.rename(temporary, place.root)
    finally:
        remove(temporary)
    return Held()


def unmount(held: Held, place: Place) -> None:
    """See :class:`udi_core.backends.Backend`."""
    remove(place.root)


def remove(path: str) -> None:
    """Remove a tree, also below directories that its owner may not write to."""
    if not os.path.lexists(path):
        return
    for directory, names, _ in os.walk(path):
        for name in names:
            child = os.path.join(directory, name)
            if not os.path.islink(child):
                os.chmod(child, 0o700)
    shutil.rmtree(path)
