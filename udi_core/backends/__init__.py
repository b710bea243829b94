"""Mount backends: the ways in which a node can show a squashfs as a directory.

Each backend is a module with the functions of :class:`Backend`; :func:`load` imports it when it is its turn.
"""

from __future__ import annotations

from udi_core.values import dataclass

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from typing import Protocol

    from udi_core.config import Config
else:
    Protocol = object

NAMES = ("kernel", "fuse", "namespace", "extract")

#: Backends whose mount needs no process of the user: it outlives a job step, so the whole node shares it.
PROCESSLESS = ("kernel", "extract")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one mount lives on the node.

    Attributes:
        root: mount point, an existing empty directory.
        lock: file that is locked exclusively by whoever mounts or unmounts.
        lease: file on which every task holds a shared lock.
        state: file that describes the mount while there is one.
        log: what the FUSE server said.
        mark: file in the store that says this node uses the image, or "".
    """

    root: str
    lock: str
    lease: str
    state: str
    log: str
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What keeps a mount alive.

    Attributes:
        pid: process of the FUSE server, or 0.
        started: that process's start time in clock ticks since boot (proc_pid_stat(5), field 22): a pid alone
            may come to mean another process.
        device: loop device, or "".
    """

    pid: int = 0
    started: int = 0
    device: str = ""


class Backend(Protocol):
    """What each backend module offers."""

    def check(self, squashfs: str, config: Config) -> None:
        """Look, without side effects, whether this backend can work for the caller on this node.

        Raises:
            UdiError: it cannot; brief and details say why, the hint what would help.
        """

    def mount(self, squashfs: str, place: Place, config: Config) -> Held:
        """Show ``squashfs`` at ``place.root``, or leave nothing behind.  Called with the place's lock held.

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
    from importlib import import_module

    backend: Backend = import_module(f"udi_core.backends.{name}")
    return backend


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name is in parentheses and may itself hold blanks and parentheses.
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0
