"""Node-local mounts: an image is mounted once on a node, however many tasks start at the same moment.

Layout of the node directory::

    <node_dir>/mounts/<hex of the image>/<slot>/    see :mod:`udi_core.slot`

A *slot* is a set of processes that can share a mount: ``node``, all of the node's; ``job-J`` or ``job-J.S``, those
of a Slurm job or step, since Slurm kills a FUSE server with the step that started it; ``shared``, what a user
keeps beside a mount that root made for everybody.  ``@N`` is added for a mount namespace that does not see the
mount of the plain slot.
"""

from __future__ import annotations

import os
import stat
import time

from udi_core import copies, etc_files, node_files, record, task_files
from udi_core.backends import PROCESSLESS, load
from udi_core.contexts import suppress
from udi_core.documents import KEPT
from udi_core.errors import MountError, PolicyError, UdiError
from udi_core.mpi import for_ranks, is_rank
from udi_core.node_files import check_directory, check_node_local
from udi_core.programs import require_program
from udi_core.progress import Progress, ProgressSink, ignore
from udi_core.slot import MountState, Slot, boot_id, listdir, namespace, view
from udi_core.values import dataclass, replace

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from udi_core.config import Config
    from udi_core.store import ImageStore, StoredImage


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


class NodeMounts:
    """All mounts that a user has on this node.  Any number of processes may use it at once."""

    def __init__(self, config: Config, store: ImageStore | None = None) -> None:
        self._config = config
        self._store = store
        self._base = os.path.join(config.node_dir, "mounts")
        # Root's directory for everybody must be open to everybody.
        self._for_all = os.geteuid() == 0 and config.node_dir == config.shared_node_dir

    def mount(self, image: StoredImage, progress: ProgressSink = ignore, *, ranks: bool = False) -> MountedImage:
        """Mount an image, or join the mount that there is, and take a lease on it.

        ``ranks`` says that the task may start ranks of MPI here, which should share a user namespace.

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
        seen = (*scopes, *(f"{scope}@{namespace()}" for scope in scopes))
        for name in seen:
            slot = self._slot(image.digest, name)
            if os.path.exists(slot.place.state):
                lease = slot.take_lease()
                state = slot.usable()
                if state is not None:
                    return self._mounted(image, state, slot, (lease,), home)
                os.close(lease)
        check_node_local(self._config.node_dir)
        self.reap()
        copy = copies.find(self._config.node_dir, image.digest)
        if copy:
            image = replace(image, squashfs=copy)
        excuses = []
        backends = self._config.backends
        for backend in for_ranks(backends) if ranks or is_rank(os.environ) else backends:
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

    def _enter(self, image: StoredImage, scope: str, backend: str) -> tuple[Slot, int, MountState]:
        """Mount in a slot, unless another process does so first."""
        for name in (scope, f"{scope}@{namespace()}"):
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

    def _mount(self, slot: Slot, image: StoredImage, backend: str) -> MountState:
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
            namespace=namespace(),
            boot_id=boot_id(),
            mounted=time.time(),
        )
        slot.write(state)
        line = record.head("mount", image.digest, image.reference, backend, os.geteuid(), os.environ, "")
        record.write(record.path(self._config), line, start=began, seconds=time.time() - began)
        return state

    def _mounted(
        self, image: StoredImage, state: MountState, slot: Slot, fds: tuple[int, ...], home: str
    ) -> MountedImage:
        """The result, with the user's ``/etc`` made in ``slot`` if it is not there yet."""
        try:
            seen = view(state)
            etc = os.path.join(slot.directory, etc_files.key(home))
            if not os.path.isdir(etc):
                with slot.locked():
                    if not os.path.isdir(etc):
                        etc_files.prepare(seen, etc, home)
            server = state.pid if state.backend == "namespace" else 0
            return MountedImage(image, state.root, _join(state), fds[0], state.backend, etc, seen, fds, server)
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
        slot = Slot(os.path.join(base, "mounts"), image.digest, "node", for_all=True)
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
            for name in listdir(self._config.node_dir):
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

    def _slot(self, digest: str, name: str) -> Slot:
        return Slot(self._base, digest, name, for_all=self._for_all)

    def _slots(self) -> Iterator[Slot]:
        for image in listdir(self._base):
            for name in listdir(os.path.join(self._base, image)):
                yield self._slot(f"sha256:{image}", name)

    def _prepare(self) -> None:
        check_directory(self._config.node_dir, for_all=self._for_all)
        if self._for_all:
            os.chmod(self._config.node_dir, 0o755)  # noqa: S103 -- checked first: a link would lead chmod elsewhere


def _scopes(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The slots whose mounts live at least as long as this process, widest first."""
    job, step = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "")
    names = ["node"]
    if job.isdigit():
        names.append(f"job-{job}")
        if step.isdigit():
            names.append(f"job-{job}.{step}")
    return tuple(names)


def _join(state: MountState) -> tuple[str, ...]:
    if state.backend != "namespace":
        return ()
    nsenter = require_program("nsenter", reason="join the namespaces of a mount", package="util-linux")
    return (nsenter, f"--target={state.pid}", "--user", "--mount", "--preserve-credentials", "--")


def _one_line(error: UdiError) -> str:
    return ": ".join(part.replace("\n", "; ") for part in (error.brief, error.details) if part)
