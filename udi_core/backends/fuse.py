"""squashfuse_ll through the setuid fusermount3: for an ordinary user on a node whose /dev/fuse is open to all."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from udi_core import _process
from udi_core.backends import Held, Place
from udi_core.errors import MountError, ToolFailed

_HOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "holder.py")


def mount(squashfs: str, place: Place) -> Held:
    """See :class:`udi_core.backends.Backend`."""
    _process.require_tool("fusermount3", reason="mount FUSE file systems as an ordinary user")
    return start_holder("fuse", squashfs, place)


def start_holder(mode: str, squashfs: str, place: Place) -> Held:
    """Start a holder (see :mod:`udi_core.holder`) and wait until the mount is there."""
    server = _process.require_tool("squashfuse_ll", reason="mount images as an ordinary user")
    argv = [sys.executable, "-I", "-S", _HOLDER, mode, server, squashfs, place.root, place.lock, place.lease]
    try:
        done = _process.run([*argv, place.state, place.log, str(place.idle)], timeout=60)
    except ToolFailed as error:
        raise MountError("squashfuse_ll does not work", error.details) from error
    return Held(pid=int(done.stdout))


def unmount(held: Held, place: Place) -> None:
    """See :class:`udi_core.backends.Backend`."""
    if os.geteuid():
        fusermount = _process.require_tool("fusermount3", reason="unmount FUSE file systems")
        if os.path.ismount(place.root) or _is_dead(place.root):
            _process.run([fusermount, "-u", "-z", "-q", place.root])
    else:
        from udi_core import loop

        try:
            loop.unmount(place.root, lazy=True)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(place.root)


def _is_dead(root: str) -> bool:
    try:
        os.stat(root)
    except OSError as error:
        return error.errno != errno.ENOENT
    return False
