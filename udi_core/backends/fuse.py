"""squashfuse_ll through the setuid fusermount3: for an ordinary user on a node whose /dev/fuse is open to all.

Never the high-level ``squashfuse``: it looks every path up anew, and is half as fast.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING

from udi_core import _process
from udi_core.backends import Held, Place, start_time
from udi_core.errors import MountError, ToolFailed

if TYPE_CHECKING:
    from udi_core.config import Config

_HOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "holder.py")
_START = 60.0  # seconds; a node that is out of memory or disk bandwidth is slow, and a mount is still worth it


def check(squashfs: str, config: Config) -> None:
    """See :class:`udi_core.backends.Backend`."""
    check_server()
    if os.geteuid():
        _process.require_tool("fusermount3", reason="mount FUSE file systems as an ordinary user")


def check_server() -> None:
    """What both FUSE backends need.

    Raises:
        UdiError: squashfuse_ll is missing, or /dev/fuse cannot be opened.
    """
    _process.require_tool("squashfuse_ll", reason="mount images as an ordinary user")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as error:
        raise MountError("there is no /dev/fuse", hint="modprobe fuse; in a container, pass the device on.") from error
    except OSError as error:
        raise MountError(
            "/dev/fuse cannot be opened",
            error.strerror or str(error),
            "An administrator should make its mode 0666, as udev does by default.",
        ) from error


def mount(squashfs: str, place: Place, config: Config) -> Held:
    """See :class:`udi_core.backends.Backend`."""
    return start_holder("fuse", squashfs, place, config)


def start_holder(mode: str, squashfs: str, place: Place, config: Config) -> Held:
    """Start a holder (see :mod:`udi_core.holder`) and wait until the mount is there.

    Raises:
        MountError: there is no mount; the details are what the server said.
    """
    server = _process.require_tool("squashfuse_ll", reason="mount images as an ordinary user")
    options = "ro,nosuid,nodev" + (",default_permissions" if config.strict_modes else "")
    argv = [sys.executable, "-I", "-S", _HOLDER, mode, server, options, squashfs, place.root, place.lock, place.lease]
    try:
        done = _process.run([*argv, place.state, place.log, place.mark, str(config.idle)], timeout=_START)
    except ToolFailed as error:
        raise MountError("squashfuse_ll cannot mount it", error.details or error.brief) from error
    pid = int(done.stdout)
    return Held(pid=pid, started=start_time(pid))


def unmount(held: Held, place: Place) -> None:
    """See :class:`udi_core.backends.Backend`."""
    # Lazily: the server ends by itself when the last namespace that has the mount is gone.
    if os.geteuid():
        if _is_mounted(place.root):
            fusermount = _process.require_tool("fusermount3", reason="unmount FUSE file systems")
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


def _is_mounted(root: str) -> bool:
    try:
        return os.stat(root).st_dev != os.stat(os.path.dirname(root)).st_dev
    except FileNotFoundError:
        return False
    except OSError:
        return True  # ENOTCONN: the server is dead, the mount is not
