"""The kernel's own squashfs on a loop device: the fastest, for root only.

The mount belongs to no process, so it outlives a job step, and any user who may enter the directory may use it.
"""

from __future__ import annotations

import contextlib
import errno
import os

from udi_core import loop
from udi_core.backends import Held, Place
from udi_core.errors import MountError


def mount(squashfs: str, place: Place) -> Held:
    """See :class:`udi_core.backends.Backend`."""
    if os.geteuid():
        raise MountError("only root can mount by loop device")
    file = os.open(squashfs, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, path = loop.attach(file, os.path.realpath(squashfs))
        try:
            loop.mount_squashfs(path, place.root)
        finally:
            os.close(device)
    finally:
        os.close(file)
    return Held(device=path)


def unmount(held: Held, place: Place) -> None:
    """See :class:`udi_core.backends.Backend`."""
    try:
        loop.unmount(place.root, lazy=True)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(place.root)
