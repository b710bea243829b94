"""Node-local mounts: an image is mounted once on a node, however many tasks start at the same moment.

Every task holds a shared flock(2) on its mount's *lease* file.  The descriptor passes through exec, so the use
ends with the last process of the task, even after ``kill -9``.  Whoever mounts or unmounts holds the *lock* file
exclusively; a mount may be taken away only by somebody who got the lease exclusively, that is, without tasks.
A task on a warm node takes no exclusive lock at all.

Layout of the node directory, known to this module only::

    <node_dir>/mounts/<hex of the image>/<slot>/lock, lease, state.json, root/, server.log, etc-<key>/

A *slot* is a set of processes that can share a mount: ``node``, all of the node's; ``job-J`` or ``job-J.S``, those
of a Slurm job or step, since Slurm kills a FUSE server with the step that started it; ``shared``, what a user
keeps beside a mount that root made for everybody.  ``@N`` is added for a mount namespace that does not see the
mount of the plain slot.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from udi_core import copies, etc_files, node_files, record, task_files
from udi_core.backends import NAMES, PROCESSLESS, Held, Place, load, start_time
from udi_core.contexts import contextmanager, suppress
from udi_core.documents import KEPT, parse_json
from udi_core.errors import ConfigError, MountError, PolicyError, UdiError
from udi_core.mpi import ordered
from udi_core.programs import require_program
from udi_core.progress import Progress, ProgressSink, ignore
from udi_core.values import dataclass, names, replace

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from udi_core.config import Config
    from udi_core.store import ImageStore, StoredImage

# Unpacking costs seconds, so what was unpacked is kept longer than a mount that costs milliseconds.
_EXTRACT_IDLE = 3600.0
# Of the mark of use in the store, which counts for days: whoever reaps meanwhile leaves the store alone.
_RENEW = 6 * 3600.0
# Seconds that those who unmount hold a lease at most, a machine that does much else included.
_INSTANT = 20.0
# File systems that several nodes see: the locks and mounts in here are of one node.
_NETWORK = frozenset({"nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "ceph", "beegfs", "pvfs2", "panfs", "afs"})


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
        fds: all descriptors that a task must inherit, ``lease_fd`` being the first.
        server: process whose namespaces ``join`` enters, or 0.
    """

    image: StoredImage
    root: str
    join: tuple[str, ...]
    lease_fd: int
    backend: str
    etc_dir: str
    view: str
    fds: tuple[int, ...]
    server: int = 0

    def close(self) -> None:
        """Give up this process's lease; children that inherited the descriptors keep theirs."""
        for fd in self.fds:
            os.close(fd)

    def __enter__(self) -> MountedImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What trying a backend showed.

    Attributes:
        reason: why it does not work; "" if it does.
        hint: what would make it work.
    """

    name: str
    ok: bool
    reason: str = ""
    hint: str = ""


class NodeMounts:
    """All mounts that a user has on this node.  Any number of processes may use it at once."""

    def __init__(self, config: Config, store: ImageStore | None = None) -> None:
        self._config = config
        self._store = store
        self._base = os.path.join(config.node_dir, "mounts")
        # Root's directory for everybody must be open to everybody.
        self._for_all = os.geteuid() == 0 and config.node_dir == config.shared_node_dir

    def mount(self, image: StoredImage, progress: ProgressSink = ignore) -> MountedImage:
        """Mount an image, or join the mount that there is, and take a lease on it.

        Raises:
            PolicyError: the site allows none of the names under which the image is known.
            MountError: no backend works; the details have one line for each and its reason.
            ConfigError: the node directory belongs to somebody else, or is on a shared file system.
        """
        if self._config.policy.is_choosy:
            self._check_policy(image)
        self._prepare()
        home = os.environ.get("HOME") or "/"
        shared = self._shared(image)
        if shared is not None:
            own = self._slot(image.digest, "shared")
            lease = own.take_lease()
            return self._mounted(image, shared[0], own, (shared[1], lease), home)
        scopes = _scopes(os.environ)
        seen = (*scopes, *(f"{scope}@{_namespace()}" for scope in scopes))
        for name in seen:
            slot = self._slot(image.digest, name)
            if os.path.exists(slot.place.state):
                lease = slot.take_lease()
                state = slot.usable()
                if state is not None:
                    return self._mounted(image, state, slot, (lease,), home)
                os.close(lease)
        self._check_node_local()
        self.reap()
        copy = copies.find(self._config.node_dir, image.digest)
        if copy:
            image = replace(image, squashfs=copy)
        excuses = []
        for backend in ordered(self._config.backends, os.environ):
            progress(Progress("mount", image.digest, note=f"trying {backend}"))
            try:
                if self._for_all and backend == "extract":
                    raise MountError(
                        "root unpacks nothing for all users of a node",
                        "Set-user-id programs, devices and files of the image's users would be real ones here.",
                    )
                load(backend).check(image.squashfs, self._config)
                scope = scopes[0] if backend in PROCESSLESS else scopes[-1]
                slot, lease, state = self._enter(image, scope, backend)
            except UdiError as error:
                excuses.append(f"{backend}: {_one_line(error)}")
                continue
            except OSError as error:
                excuses.append(f"{backend}: {error.strerror or error}")
                continue
            progress(Progress("mount", image.digest, 1, 1, "images", backend))
            return self._mounted(image, state, slot, (lease,), home)
        raise MountError(
            f"The image {image.reference or image.digest} cannot be mounted on this node",
            "\n".join(excuses) or "The configuration names no backend.",
            "udi doctor says what each backend needs.",
        )

    def _check_policy(self, image: StoredImage) -> None:
        from udi_core.policy import check_reference
        from udi_core.reference import ImageReference
        from udi_core.store import ImageStore

        def check(reference: str) -> None:
            check_reference(self._config.policy, ImageReference.parse(reference))

        try:
            check(image.reference)
        except PolicyError:
            # The name under which it came may be denied, and another one that it has be allowed.
            for tag in ImageStore(self._config.store).tags():
                if image.digest in tag.images.values():
                    with suppress(PolicyError):
                        return check(tag.reference)
            raise

    def _enter(self, image: StoredImage, scope: str, backend: str) -> tuple[_Slot, int, MountState]:
        """Mount in a slot, unless another process does so first."""
        for name in (scope, f"{scope}@{_namespace()}"):
            slot = self._slot(image.digest, name)
            lease = slot.take_lease()
            try:
                with slot.locked():
                    state = slot.usable()
                    if state is None and slot.is_foreign() and name == scope:
                        os.close(lease)
                        continue
                    return slot, lease, state or self._mount(slot, image, backend)
            except BaseException:
                os.close(lease)
                raise
        raise AssertionError("the second slot takes every mount")

    def _mount(self, slot: _Slot, image: StoredImage, backend: str) -> MountState:
        slot.discard()
        os.makedirs(slot.place.root, exist_ok=True)
        mark = ""
        if self._store is not None:
            mark = self._store.mark_use(image.digest, slot.user_of_the_store())
        began = time.time()
        held = load(backend).mount(image.squashfs, replace(slot.place, mark=mark), self._config)
        state = MountState(
            digest=image.digest,
            reference=image.reference,
            squashfs=image.squashfs,
            backend=backend,
            root=slot.place.root,
            pid=held.pid,
            started=held.started,
            device=held.device,
            namespace=_namespace(),
            boot_id=_boot_id(),
            mounted=time.time(),
        )
        slot.write(state)
        line = record.head("mount", image.digest, image.reference, backend, os.geteuid(), os.environ, "")
        record.write(record.path(self._config), line, start=began, seconds=time.time() - began)
        return state

    def _mounted(
        self, image: StoredImage, state: MountState, slot: _Slot, fds: tuple[int, ...], home: str
    ) -> MountedImage:
        """The result, with the user's ``/etc`` made in ``slot`` if it is not there yet."""
        try:
            view = _view(state)
            etc = os.path.join(slot.directory, etc_files.key(home))
            if not os.path.isdir(etc):
                with slot.locked():
                    if not os.path.isdir(etc):
                        etc_files.prepare(view, etc, home)
            server = state.pid if state.backend == "namespace" else 0
            return MountedImage(image, state.root, _join(state), fds[0], state.backend, etc, view, fds, server)
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, OSError):
                raise MountError(
                    f"The /etc of tasks cannot be made in {self._config.node_dir}",
                    error.strerror or str(error),
                    "Make room there, or set UDI_NODE_DIR to a node-local directory that has some.",
                ) from error
            raise

    def _shared(self, image: StoredImage) -> tuple[MountState, int] | None:
        """Root's mount for everybody and a lease on it, if there is one that can be trusted."""
        base = self._config.shared_node_dir
        if self._for_all or not os.path.isdir(os.path.join(base, "mounts")):
            return None
        slot = _Slot(os.path.join(base, "mounts"), image.digest, "node", for_all=True)
        try:
            for path in (base, slot.place.state):
                status = os.lstat(path)
                if status.st_uid or status.st_mode & 0o022 or stat.S_ISLNK(status.st_mode):
                    return None
            # Another user may hold this lock exclusively for fun: whoever does so costs us a mount of our own.
            lease = slot.borrow_lease()
        except OSError:
            return None
        state = slot.usable()
        if state is None or state.backend != "kernel":
            os.close(lease)
            return None
        return state, lease

    def status(self) -> list[MountState]:
        """The mounts that there are now and that this process can see, dead ones left out."""
        return [state for slot in self._slots() if (state := slot.usable()) is not None]

    def is_mounted(self, digest: str) -> bool:
        """Whether this user has an image mounted on this node."""
        return any(state.digest == digest for state in self.status())

    def reap(self) -> list[str]:
        """Take away every mount that no task has begun to use within the configured idle time, and dead ones.

        Returns:
            Digests of what was taken away.
        """
        return self._reap(self._config.idle)

    def clean(self) -> list[str]:
        """Take away every mount that no task uses, and the node directory when nothing is left in it.

        This node's run record goes to where records are collected.

        Returns:
            Digests of what was taken away.
        """
        from udi_core.temporary import sweep

        removed = self._reap(0)
        copies.clean(self._config.node_dir, self.is_mounted)
        sweep(self._config.node_dir)
        task_files.settle(self._config)
        record.collect(self._config)
        node_files.forget(self._config.node_dir)
        with suppress(OSError):
            with suppress(FileNotFoundError):  # nothing was ever mounted
                os.rmdir(self._base)
            for name in _listdir(self._config.node_dir):
                if name.startswith(KEPT):
                    os.unlink(os.path.join(self._config.node_dir, name))
            os.rmdir(self._config.node_dir)
        return removed

    def release(self, digest: str) -> None:
        """Take away the mounts of one image that no task uses."""
        for slot in self._slots():
            if slot.digest == digest:
                slot.reap(0, self._store)

    def _reap(self, idle: float) -> list[str]:
        return [slot.digest for slot in self._slots() if slot.reap(idle, self._store)]

    def _slot(self, digest: str, name: str) -> _Slot:
        return _Slot(self._base, digest, name, for_all=self._for_all)

    def _slots(self) -> Iterator[_Slot]:
        for image in _listdir(self._base):
            for name in _listdir(os.path.join(self._base, image)):
                yield self._slot(f"sha256:{image}", name)

    def _prepare(self) -> None:
        check_directory(self._config.node_dir, for_all=self._for_all)
        if self._for_all:
            os.chmod(self._config.node_dir, 0o755)  # noqa: S103 -- checked first: a link would lead chmod elsewhere

    def _check_node_local(self) -> None:
        kind = _file_system(self._config.node_dir)
        if kind in _NETWORK or (kind.startswith("fuse.") and kind != "fuse.fuse-overlayfs"):
            raise ConfigError(
                f"The node directory {self._config.node_dir} is not on this node",
                f"It is on a file system of type {kind}, which other nodes may see as well.",
                "Set node_dir in the configuration, or UDI_NODE_DIR, to a directory in /tmp, /run or /dev/shm.",
            )


class _Slot:
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
                return state if state.boot_id == _boot_id() and os.path.isdir(state.root) else None
            if state.backend == "namespace" and (
                state.namespace != _namespace() or start_time(state.pid) != state.started
            ):
                return None
            view = _view(state)
            if os.stat(view).st_dev == os.stat(self.directory).st_dev:
                return None
            if state.pid:
                os.statvfs(view)  # the kernel answers stat(2) from its cache, and asks the server only here
            return state
        except OSError:
            return None  # ENOTCONN: the server died; EACCES: a server in a namespace that is closed to us

    def is_foreign(self) -> bool:
        """Whether there is a mount that lives in another mount namespace, and so is not ours to replace."""
        state = self.read()
        if state is None or state.namespace == _namespace() or state.boot_id != _boot_id():
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
            is_ours = state.boot_id == _boot_id()
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
        for name in _listdir(self.directory):
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


def probe_backends(config: Config) -> list[Verdict]:
    """Try every configured backend, in order, on a tiny image of our own.  Leaves nothing behind."""
    from udi_core.backends.probe import probe

    check_directory(config.node_dir)
    return [Verdict(name=name, ok=not reason, reason=reason, hint=hint) for name, reason, hint in probe(config)]


def check_directory(path: str, *, for_all: bool = False) -> None:
    """Make sure that a directory is the caller's own and closed to others: mode 0700, no symbolic link.

    In /tmp anybody may have made that name first.  ``for_all`` lets others read, not write.

    Raises:
        ConfigError: it is somebody else's, a link, or open to others.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        try:
            os.makedirs(path, 0o700, exist_ok=True)
            status = os.lstat(path)
        except OSError as error:
            raise ConfigError(
                f"The node directory {path} cannot be made", error.strerror or str(error), "Set UDI_NODE_DIR."
            ) from error
    except OSError as error:
        raise ConfigError(f"The node directory {path} cannot be used", error.strerror or str(error)) from error
    if not stat.S_ISDIR(status.st_mode):
        wrong = "It is a symbolic link, or no directory."
    elif status.st_uid != os.geteuid():
        wrong = f"It belongs to user {status.st_uid}."
    elif status.st_mode & (0o022 if for_all else 0o077):
        wrong = f"Its mode is {stat.S_IMODE(status.st_mode):04o}, so others could reach what is in it."
    else:
        return
    raise ConfigError(
        f"The node directory {path} is not safe to use",
        wrong,
        "Remove it, run chmod 0700 on it, or set UDI_NODE_DIR to a directory of your own.",
    )


def _scopes(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The slots whose mounts live at least as long as this process, widest first."""
    job, step = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "")
    names = ["node"]
    if job.isdigit():
        names.append(f"job-{job}")
        if step.isdigit():
            names.append(f"job-{job}.{step}")
    return tuple(names)


def _view(state: MountState) -> str:
    """Where a process outside the server's namespaces can look at the image."""
    return f"/proc/{state.pid}/root{state.root}" if state.backend == "namespace" else state.root


def _join(state: MountState) -> tuple[str, ...]:
    if state.backend != "namespace":
        return ()
    nsenter = require_program("nsenter", reason="join the namespaces of a mount", package="util-linux")
    return (nsenter, f"--target={state.pid}", "--user", "--mount", "--preserve-credentials", "--")


def _namespace() -> int:
    return os.stat("/proc/self/ns/mnt").st_ino


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _file_system(path: str) -> str:
    """The type of the file system that a directory is on, by its mount point (proc_pid_mountinfo(5))."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted:
                return right.split()[0]
    return ""


def _listdir(path: str) -> list[str]:
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


def _one_line(error: UdiError) -> str:
    return ": ".join(part.replace("\n", "; ") for part in (error.brief, error.details) if part)
