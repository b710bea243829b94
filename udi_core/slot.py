"""One mount of an image on a node: its directory, its locks, and what is said of it.

Every task holds a shared flock(2) on its mount's *lease* file.  The descriptor passes through exec, so the use
ends with the last process of the task, even after ``kill -9``.  Whoever mounts or unmounts holds the *lock* file
exclusively; a mount may be taken away only by somebody who got the lease exclusively, that is, without tasks.
A task on a warm node takes no exclusive lock at all.

Files of a slot, known to this module only::

    lock, lease, state.json, root/, server.log, etc-<key>/
"""

from __future__ import annotations

import fcntl
import os
import time

from udi_core import node_files
from udi_core.backends import NAMES, Held, Place, load, start_time
from udi_core.contexts import contextmanager, suppress
from udi_core.documents import parse_json
from udi_core.errors import MountError, UdiError
from udi_core.values import dataclass, names

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from udi_core.store import ImageStore

# Unpacking costs seconds, so what was unpacked is kept longer than a mount that costs milliseconds.
_EXTRACT_IDLE = 3600.0
# Of the mark of use in the store, which counts for days: whoever reaps meanwhile leaves the store alone.
_RENEW = 6 * 3600.0
# Seconds that those who unmount hold a lease at most, a machine that does much else included.
_INSTANT = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MountState:
    """What ``state.json`` says about a mount.

    Attributes:
        digest: the image.
        reference: what it was first pulled as.
        backend: one of :data:`udi_core.backends.NAMES`.
        root: where it is mounted.
        pid: process of the FUSE server, or 0; ``started`` is its start time in clock ticks since boot.
        device: loop device, or "".
        namespace: inode of the mount namespace in which it was mounted.
        boot_id: the node's boot at that time.
        mounted: when, in seconds since 1970.
    """

    digest: str
    reference: str
    squashfs: str
    backend: str
    root: str
    pid: int
    started: int
    device: str
    namespace: int
    boot_id: str
    mounted: float


class Slot:
    """The directory of one image's mount."""

    def __init__(self, base: str, digest: str, name: str, *, for_all: bool = False) -> None:
        self.digest = digest
        self.name = name
        self.directory = directory = os.path.join(base, digest.rpartition(":")[2], name)
        self.place = Place(
            root=f"{directory}/root",
            lock=f"{directory}/lock",
            lease=f"{directory}/lease",
            state=f"{directory}/state.json",
            log=f"{directory}/server.log",
        )
        self._for_all = for_all

    def take_lease(self) -> int:
        """An inheritable descriptor with a shared lock on the lease file, marked as used now."""
        while True:
            try:
                fd = os.open(self.place.lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                self._make_directory()
                continue
            self._share(fd)
            if _is_same_file(fd, self.place.lease):
                break
            os.close(fd)  # reaped between our open and our lock
        os.utime(fd)
        if self._for_all:
            os.fchmod(fd, 0o644)
        os.set_inheritable(fd, True)
        return fd

    def _share(self, lease: int) -> None:
        """Wait for a shared lock; where any user may hold the lock exclusively, for fun and for ever, not for long.

        Raises:
            MountError: somebody does.
        """
        if not self._for_all:
            fcntl.flock(lease, fcntl.LOCK_SH)
            return
        end = time.monotonic() + _INSTANT
        while True:
            try:
                fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > end:
                    os.close(lease)
                    raise MountError(
                        "Another user keeps this image from being mounted for all",
                        f"A process holds {self.place.lease} locked.",
                        f"End it: fuser -v {self.place.lease}",
                    ) from error
            time.sleep(0.01)

    def _make_directory(self) -> None:
        os.makedirs(self.directory, 0o700, exist_ok=True)
        if self._for_all:
            image = os.path.dirname(self.directory)
            for path in (os.path.dirname(image), image, self.directory):
                os.chmod(path, 0o755)  # noqa: S103 -- not by mkdir: root's umask is often 077

    def borrow_lease(self) -> int:
        """The same on somebody else's mount: nothing is made, nothing is waited for.

        Raises:
            OSError: there is no lease, or somebody is taking the mount away.
        """
        fd = os.open(self.place.lease, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        os.set_inheritable(fd, True)
        return fd

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive right to mount and unmount here."""
        fd = os.open(self.place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def read(self) -> MountState | None:
        """What the state file says, whether that is still true or not."""
        try:
            with open(self.place.state, "rb") as file:
                return _state(parse_json(file.read()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, state: MountState) -> None:
        """Publish the mount."""
        import json

        temporary = self.place.state + ".part"
        with open(temporary, "w") as file:
            json.dump({name: getattr(state, name) for name in names(MountState)}, file)
        os.chmod(temporary, 0o644 if self._for_all else 0o600)
        os.rename(temporary, self.place.state)

    def usable(self) -> MountState | None:
        """The mount, if it is there and alive as seen by this process."""
        state = self.read()
        if state is None:
            return None
        try:
            if state.backend == "extract":
                # After a crash, files that were unpacked shortly before may be empty.
                return state if state.boot_id == boot_id() and os.path.isdir(state.root) else None
            if state.backend == "namespace" and (
                state.namespace != namespace() or start_time(state.pid) != state.started
            ):
                return None
            seen = view(state)
            if os.stat(seen).st_dev == os.stat(self.directory).st_dev:
                return None
            if state.pid:
                os.statvfs(seen)  # the kernel answers stat(2) from its cache, and asks the server only here
            return state
        except OSError:
            return None  # ENOTCONN: the server died; EACCES: a server in a namespace that is closed to us

    def is_foreign(self) -> bool:
        """Whether there is a mount that lives in another mount namespace, and so is not ours to replace."""
        state = self.read()
        if state is None or state.namespace == namespace() or state.boot_id != boot_id():
            return False
        if state.device:
            try:
                with open(f"/sys/block/{os.path.basename(state.device)}/loop/backing_file", "rb") as file:
                    return file.read().rstrip(b"\n") == os.fsencode(os.path.realpath(state.squashfs))
            except OSError:
                return False
        return start_time(state.pid) == state.started

    def discard(self) -> None:
        """Remove what is left of an earlier mount."""
        state = self.read()
        with suppress(FileNotFoundError):
            os.unlink(self.place.state)
        if state is not None:
            # Of another boot only the files are left, and the process id may be a stranger's.
            is_ours = state.boot_id == boot_id()
            held = Held(pid=state.pid, started=state.started, device=state.device) if is_ours else Held()
            load(state.backend).unmount(held, self.place)
        elif os.path.lexists(self.place.root):
            # The state file is damaged or gone, and what it described may be there: a mount, or unpacked files.
            with suppress(OSError):
                load("fuse").unmount(Held(), self.place)
            load("extract").unmount(Held(), self.place)

    def user_of_the_store(self) -> str:
        """The name under which this mount is a user of its image in the store."""
        node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
        return f"{node}.{os.geteuid()}.{self.name}"

    def reap(self, idle: float, store: ImageStore | None) -> bool:
        """Remove the mount unless a task uses it or began to do so within the last ``idle`` seconds.

        What is dead is removed whenever no task uses it.
        """
        try:
            lease = os.open(self.place.lease, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            with self.locked():
                if not _taken_alone(lease):
                    if store is not None:
                        store.mark_use(self.digest, self.user_of_the_store(), younger=_RENEW)
                    return False
                if not _is_same_file(lease, self.place.lease):
                    return False  # another reaper was here first, and a new mount may have taken its place
                state = self.usable()
                if state is None and self.is_foreign():
                    return False
                if state is not None and state.backend == "extract" and idle:
                    idle = max(idle, _EXTRACT_IDLE)
                unused = time.time() - os.fstat(lease).st_mtime
                if (state is not None or self.name == "shared") and unused < idle:
                    return False
                with suppress(UdiError, OSError):
                    self.discard()
                if store is not None:
                    store.unmark_use(self.digest, self.user_of_the_store())
                self._remove()
                return True
        except FileNotFoundError:
            return False  # the directory went away between open and lock
        finally:
            os.close(lease)

    def _remove(self) -> None:
        for name in listdir(self.directory):
            if name.startswith("etc-"):
                node_files.remove_tree(os.path.join(self.directory, name))
        for path in (self.place.log, self.place.lease, self.place.lock):
            with suppress(FileNotFoundError):
                os.unlink(path)
        with suppress(OSError):  # left by a backend that failed
            os.rmdir(self.place.root)
        with suppress(OSError):  # a mount that could not be taken away
            os.rmdir(self.directory)
            os.rmdir(os.path.dirname(self.directory))


def view(state: MountState) -> str:
    """Where a process outside the server's namespaces can look at the image."""
    return f"/proc/{state.pid}/root{state.root}" if state.backend == "namespace" else state.root


def _state(document: dict[str, Any]) -> MountState:
    """The state that a file describes.

    Raises:
        TypeError, ValueError: it is damaged.
    """
    state = MountState(**document)
    for name, kind in MountState.__annotations__.items():
        given = type(getattr(state, name)).__name__
        if given != kind and (given, kind) != ("int", "float"):
            raise TypeError(f"{name} is {given}")
    if state.backend not in NAMES:
        raise ValueError(state.backend)
    return state


def namespace() -> int:
    return os.stat("/proc/self/ns/mnt").st_ino


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _taken_alone(lease: int) -> bool:
    """Lock a lease exclusively; False if a task holds it.

    When the last task gives its lease up, a holder that waits for that has the exclusive lock for an instant, which
    must not be taken for a task's: a shared lock is refused by the holder only, so ask again while it is.
    """
    end = time.monotonic() + _INSTANT
    while time.monotonic() < end:
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        try:
            fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.0005)
            continue
        # Between the two calls a holder may have come and gone: only tasks refuse for long.
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
    return False  # another user's, of a mount for all


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
