"""Node-local mounts: an image is mounted once on a node, however many tasks start at the same moment.

Every task holds a shared flock(2) on its mount's *lease* file.  The descriptor passes through exec, so the use
ends with the last process of the task, even after ``kill -9``.  Whoever mounts or unmounts holds the *lock* file
exclusively; a mount may be taken away only by somebody who got the lease exclusively, that is, without tasks.
A task on a warm node takes no exclusive lock at all.

Layout of the node directory (private to the user, mode 0700), known to this module only::

    <node_dir>/mounts/<hex>/lock, lease, state.json, root/, server.log, etc-<key>/
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from udi_core import etc_files
from udi_core.backends import Held, Place, load
from udi_core.errors import ConfigError, MountError, UdiError
from udi_core.programs import require_program
from udi_core.progress import Progress, ProgressSink, ignore

if TYPE_CHECKING:
    from udi_core.config import Config
    from udi_core.store import ImageStore, StoredImage


@dataclass(frozen=True, slots=True, kw_only=True)
class MountState:
    """What ``state.json`` says about a mount.

    Attributes:
        backend: one of :data:`udi_core.backends.NAMES`.
        pid: process of the FUSE server or holder, or 0.
        device: loop device, or "".
        mounted: when, in seconds since 1970.
    """

    digest: str
    reference: str
    squashfs: str
    backend: str
    pid: int
    device: str
    boot_id: str
    mounted: float


@dataclass(frozen=True, slots=True)
class MountedImage:
    """An image that this node shows, and this process's lease on it.

    Attributes:
        image: the image.
        root: its directory, as seen after ``join``.
        join: argv prefix that enters the namespaces in which ``root`` can be seen; empty where everybody sees it.
        lease_fd: inheritable descriptor; whatever process has it keeps the mount.
        backend: how it was mounted.
        etc_dir: the ``/etc`` for this user's tasks.
        view: the directory through which this process can look at the image.
    """

    image: StoredImage
    root: str
    join: tuple[str, ...]
    lease_fd: int
    backend: str
    etc_dir: str
    view: str

    def close(self) -> None:
        """Give up this process's lease; children that inherited the descriptor keep theirs."""
        os.close(self.lease_fd)

    def __enter__(self) -> MountedImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NodeMounts:
    """All mounts that a user has on this node.  Any number of processes may use it at once."""

    def __init__(self, config: Config, store: ImageStore | None = None) -> None:
        self._config = config
        self._store = store
        self._base = os.path.join(config.node_dir, "mounts")

    def mount(self, image: StoredImage, progress: ProgressSink = ignore) -> MountedImage:
        """Mount an image, or join the mount that there is, and take a lease on it.

        Raises:
            MountError: no backend works; the details have one line for each and its reason.
            ConfigError: the node directory belongs to somebody else.
        """
        private_directory(self._config.node_dir)
        slot = _Slot(self._base, image.digest, self._config.idle)
        lease = slot.take_lease()
        try:
            state = slot.usable()
            if state is None:
                with slot.locked():
                    state = slot.usable() or self._mount(slot, image, progress)
            view = slot.view(state)
            etc = self._etc(slot, view)
        except BaseException:
            os.close(lease)
            raise
        return MountedImage(image, slot.place.root, slot.join(state), lease, state.backend, etc, view)

    def _mount(self, slot: _Slot, image: StoredImage, progress: ProgressSink) -> MountState:
        slot.discard()
        excuses = []
        for name in self._config.backends:
            progress(Progress("mount", image.digest, note=f"trying {name}"))
            os.makedirs(slot.place.root, 0o755, exist_ok=True)
            try:
                held = load(name).mount(image.squashfs, slot.place)
            except UdiError as error:
                excuses.append(f"{name}: {_one_line(error)}")
                continue
            except OSError as error:
                excuses.append(f"{name}: {error.strerror or error}")
                continue
            state = MountState(
                digest=image.digest,
                reference=image.reference,
                squashfs=image.squashfs,
                backend=name,
                pid=held.pid,
                device=held.device,
                boot_id=_boot_id(),
                mounted=time.time(),
            )
            slot.write(state)
            progress(Progress("mount", image.digest, 1, 1, "images", name))
            return state
        raise MountError(
            f"The image {image.reference or image.digest} cannot be mounted on this node",
            "\n".join(excuses),
            "udi doctor says for each backend what it needs.",
        )

    def _etc(self, slot: _Slot, view: str) -> str:
        home = os.environ.get("HOME") or "/"
        path = os.path.join(slot.directory, etc_files.key(home))
        if not os.path.isdir(path):
            etc_files.prepare(view, path, home)
        return path

    def status(self) -> list[MountState]:
        """The mounts that there are now, dead ones left out."""
        return [state for slot in self._slots() if (state := slot.usable()) is not None]

    def reap(self) -> list[str]:
        """Take away every mount that no task has used for the configured idle time.  Returns their digests."""
        return self._reap(self._config.idle)

    def clean(self) -> list[str]:
        """Take away every mount that no task uses, whenever it was used last.  Returns their digests."""
        return self._reap(0)

    def _reap(self, idle: float) -> list[str]:
        return [slot.digest for slot in self._slots() if slot.reap(idle)]

    def _slots(self) -> Iterator[_Slot]:
        try:
            names = sorted(os.listdir(self._base))
        except FileNotFoundError:
            return
        for name in names:
            yield _Slot(self._base, f"sha256:{name}", self._config.idle)


class _Slot:
    """The directory of one image's mount."""

    def __init__(self, base: str, digest: str, idle: float) -> None:
        self.digest = digest
        self.directory = directory = os.path.join(base, digest.rpartition(":")[2])
        self.place = Place(
            root=os.path.join(directory, "root"),
            lock=os.path.join(directory, "lock"),
            lease=os.path.join(directory, "lease"),
            state=os.path.join(directory, "state.json"),
            log=os.path.join(directory, "server.log"),
            idle=idle,
        )

    def take_lease(self) -> int:
        """An inheritable descriptor with a shared lock on the lease file, marked as used now."""
        while True:
            try:
                fd = os.open(self.place.lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                os.makedirs(self.directory, 0o700, exist_ok=True)
                continue
            fcntl.flock(fd, fcntl.LOCK_SH)
            if _is_same_file(fd, self.place.lease):
                break
            os.close(fd)  # reaped between our open and our lock
        os.utime(fd)
        os.set_inheritable(fd, True)
        return fd

    @contextlib.contextmanager
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
                return MountState(**json.loads(file.read()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, state: MountState) -> None:
        """Publish the mount."""
        temporary = self.place.state + ".part"
        with open(temporary, "w") as file:
            json.dump(asdict(state), file)
        os.rename(temporary, self.place.state)

    def usable(self) -> MountState | None:
        """The mount, if it is there and alive as seen by this process."""
        state = self.read()
        if state is None:
            return None
        try:
            if state.backend == "extract":
                return state if os.path.isdir(self.place.root) else None
            if state.backend == "namespace" and state.boot_id != _boot_id():
                return None
            outer = os.stat(self.directory).st_dev
            return state if os.stat(self.view(state)).st_dev != outer else None
        except OSError:
            return None  # ENOENT: no holder; ENOTCONN: the server died

    def view(self, state: MountState) -> str:
        """Where a process outside the holder's namespaces can look at the image."""
        return f"/proc/{state.pid}/root{self.place.root}" if state.backend == "namespace" else self.place.root

    def join(self, state: MountState) -> tuple[str, ...]:
        """See :class:`MountedImage`."""
        if state.backend != "namespace":
            return ()
        nsenter = require_program("nsenter", reason="join the namespaces of a mount", package="util-linux")
        return (nsenter, f"--target={state.pid}", "--user", "--mount", "--preserve-credentials", "--")

    def discard(self) -> None:
        """Remove what is left of an earlier mount."""
        state = self.read()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.place.state)
        if state is not None:
            with contextlib.suppress(UdiError, OSError):
                load(state.backend).unmount(Held(pid=state.pid, device=state.device), self.place)

    def reap(self, idle: float) -> bool:
        """Remove the mount unless a task uses it or did so within the last ``idle`` seconds."""
        try:
            lease = os.open(self.place.lease, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            with self.locked():
                try:
                    fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno != errno.EWOULDBLOCK:
                        raise
                    return False
                if not _is_same_file(lease, self.place.lease):
                    return False  # another reaper was here first, and a new mount may have taken its place
                if idle and time.time() - os.fstat(lease).st_mtime < idle:
                    return False
                self.discard()
                from udi_core.backends.extract import remove

                for name in os.listdir(self.directory):
                    if name.startswith("etc-"):
                        remove(os.path.join(self.directory, name))
                for path in (self.place.log, self.place.lease, self.place.lock):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                with contextlib.suppress(OSError):
                    os.rmdir(self.directory)
                return True
        finally:
            os.close(lease)


def private_directory(path: str) -> None:
    """Make sure that a directory is the caller's own and closed to others: mode 0700, no symbolic link.

    In /tmp anybody may have made that name first.

    Raises:
        ConfigError: it is somebody else's, a link, or open to others.
    """
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as error:
        raise ConfigError(
            f"The node directory {path} cannot be made", error.strerror or str(error), "Set UDI_NODE_DIR."
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        wrong = "It is a symbolic link, or no directory."
    elif status.st_uid != os.geteuid():
        wrong = f"It belongs to user {status.st_uid}."
    elif status.st_mode & 0o077:
        wrong = f"Its mode is {stat.S_IMODE(status.st_mode):04o}, so others could plant files in it."
    else:
        return
    raise ConfigError(
        f"The node directory {path} is not safe to use",
        wrong,
        "Remove it, run chmod 0700 on it, or set UDI_NODE_DIR to a directory of your own.",
    )


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _one_line(error: UdiError) -> str:
    return "; ".join(part.replace("\n", " ") for part in (error.brief, error.details) if part)
