"""squashfuse_ll in a user and mount namespace of its own, which tasks join: needs no setuid program.

Tasks see the node's later mounts in there as well, since the namespace is a slave of the node's.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from udi_core import _process
from udi_core.backends import Held, Place, start_time
from udi_core.backends.fuse import check_server, start_holder
from udi_core.errors import MountError

if TYPE_CHECKING:
    from udi_core.config import Config


def check(squashfs: str, config: Config) -> None:
    """See :class:`udi_core.backends.Backend`."""
    check_server()
    _process.require_tool("nsenter", reason="join the namespace of a mount")
    if _sysctl("/proc/sys/user/max_user_namespaces") == 0:
        raise _no_namespaces("user.max_user_namespaces")
    if os.geteuid() and _sysctl("/proc/sys/kernel/unprivileged_userns_clone") == 0:  # Debian's own
        raise _no_namespaces("kernel.unprivileged_userns_clone")


def _sysctl(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except FileNotFoundError:
        return None


def _no_namespaces(name: str) -> MountError:
    return MountError(
        "this node has no user namespaces for ordinary users",
        f"{name} is 0",
        f"An administrator can allow them: sysctl {name}=" + ("1" if name.endswith("clone") else "63000"),
    )


def mount(squashfs: str, place: Place, config: Config) -> Held:
    """See :class:`udi_core.backends.Backend`."""
    return start_holder("namespace", squashfs, place, config)


def unmount(held: Held, place: Place) -> None:
    """See :class:`udi_core.backends.Backend`."""
    # Its pid may belong to another process by now.
    if held.pid and start_time(held.pid) == held.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(held.pid, signal.SIGTERM)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(place.root)
