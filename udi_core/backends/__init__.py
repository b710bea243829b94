"""Mount backends: the ways in which a node can show a squashfs as a directory.

Each backend is a module with the functions of :class:`Backend`; :func:`load` imports it when it is its turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

NAMES = ("kernel", "fuse", "namespace", "extract")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one mount lives on the node.

    Attributes:
        root: mount point, an existing empty directory.
        lock: file that is locked exclusively by whoever mounts or unmounts.
        lease: file on which every task holds a shared lock.
        state: file that describes the mount while there is one.
        log: what the FUSE server said.
        idle: seconds without a task after which a server leaves by itself.
    """

    root: str
    lock: str
    lease: str
    state: str
    log: str
    idle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What keeps a mount alive.

    Attributes:
        pid: process of the FUSE server, or 0.
        device: loop device, or "".
    """

    pid: int = 0
    device: str = ""


class Backend(Protocol):
    """What each backend module offers."""

    def mount(self, squashfs: str, place: Place) -> Held:
        """Show ``squashfs`` at ``place.root``, or leave nothing behind.

        Raises:
            UdiError, OSError: this backend does not work here; the text is kept as its excuse.
        """

    def unmount(self, held: Held, place: Place) -> None:
        """Take it away again, dead or alive; tasks that are still inside keep what they have.  Idempotent.

        Raises:
            UdiError, OSError: it is still there.
        """


def load(name: str) -> Backend:
    """The backend of one of :data:`NAMES`."""
    return cast(Backend, import_module(f"udi_core.backends.{name}"))
