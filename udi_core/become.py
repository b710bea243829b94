"""Becoming a task: what bubblewrap does, done by this process to itself, so that it is the task afterwards.

bubblewrap stays as the parent of the program that it starts.  A signal sent to it does not reach the program: who
ends ``udi run`` by its process id (``subprocess.run(timeout=…)``, a supervisor) would leave the program running.
A process that becomes its own task has no such parent: signals, exit status and process id are the task's own.

Needs Linux 5.12 (mount_setattr) and a process with a single thread; where something is missing, bubblewrap does it.
Sources: open_tree(2), move_mount(2), mount_setattr(2), openat2(2), pivot_root(2), user_namespaces(7),
capabilities(7), prctl(2).
"""

from __future__ import annotations

import errno
import os
import sys

from udi_core import clib
from udi_core.contexts import contextmanager, suppress
from udi_core.errors import CommandNotFound, LaunchError, NotExecutable
from udi_core.layout import Plan, Step

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NoReturn

# Since Linux 5.1 a system call has the same number everywhere (asm-generic/unistd.h); pivot_root is older.
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_CLONE3 = 435
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_CLONE_PARENT, _CLONE_NEWNS, _CLONE_NEWUSER = 0x8000, 0x20000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE, _MNT_DETACH = 2, 4, 8, 0x4000, 0x80000, 2
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 1, 4, 0x40
_RDONLY, _NOSUID, _NODEV = 1, 2, 4  # MOUNT_ATTR_…
_ATTRIBUTES = {"bind": _NOSUID | _NODEV, "ro-bind": _RDONLY | _NOSUID | _NODEV, "dev-bind": _NOSUID}
_RESOLVE_IN_ROOT = 0x10
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 24, 38, 47


_syscall, _prctl, _mount_call, _umount2 = map(clib.function, ("syscall", "prctl", "mount", "umount2"))
_unshare, _setns, _signal, _capset = map(clib.function, ("unshare", "setns", "signal", "capset"))

# What a kernel says that gives ordinary users no user namespace that they could mount in.
_FORBIDDING = (
    ("kernel/unprivileged_userns_clone", "0"),  # Debian's own
    ("user/max_user_namespaces", "0"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1"),  # Ubuntu's own
)


def forbidding_sysctl() -> tuple[str, str]:
    """Name and value of the setting that denies ordinary users their namespaces; "" if none does."""
    for name, bad in _FORBIDDING:
        try:
            with open(f"/proc/sys/{name}") as file:
                if file.read().strip() == bad:
                    return name.replace("/", "."), bad
        except OSError:
            continue
    return "", ""


def can_become() -> bool:
    """Whether this process, on this kernel, can become a task by itself."""
    if os.geteuid() and forbidding_sysctl()[0]:
        return False  # bubblewrap may be setuid, or AppArmor may know it
    if os.uname().machine not in _PIVOT_ROOT or len(os.listdir("/proc/self/task")) != 1:
        return False
    # A kernel that knows the call complains of the size; an older one, or a seccomp filter, does not get there.
    result = _syscall(_MOUNT_SETATTR, -1, b"", 0, None, 0)
    return bool(result == -1 and clib.error() == errno.EINVAL)


def restore_signals() -> None:
    """Undo that Python ignores SIGPIPE and SIGXFSZ: what a process ignores it ignores after exec as well."""
    # The C library's call: the module signal imports enum, which costs a warm start 3 ms.
    for number in (13, 25):
        _signal(number, None)


def become(plan: Plan) -> NoReturn:
    """Become the task; returns only by raising, and then this process is of no further use but to say so.

    Raises:
        LaunchError: the kernel refused something, or the program cannot be executed.
    """
    go_in(plan)
    execute(plan.command, plan.env)


def go_in(plan: Plan) -> None:
    """All of it but for the program: this process sees and may do no more than the task afterwards.

    Raises:
        LaunchError: the kernel refused something.
    """
    try:
        _enter_namespaces(plan.server)
        _make_view(plan)
        os.chdir(plan.workdir)
        _drop_privileges()
        if plan.die_with_parent:
            die_with_parent()
    except OSError as error:
        raise LaunchError(
            "The sandbox could not be built",
            f"{error.filename or 'system call'}: {error.strerror}",
            "udi doctor says what this node lacks.",
        ) from error


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread ends that started it; a fork does not inherit it."""
    _check(_prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")


def _enter_namespaces(server: int) -> None:
    if server:
        for name, kind in (("user", _CLONE_NEWUSER), ("mnt", _CLONE_NEWNS)):
            fd = os.open(f"/proc/{server}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            _check(_setns(fd, kind), f"setns {name}")
            os.close(fd)
    uid, gid = os.geteuid(), os.getegid()
    # Root in a container often lacks CAP_SYS_ADMIN, and needs a user namespace as everybody does.
    # In the namespace of a server a task has all it takes, and stays in it: ranks of one node that read each other's
    # memory (process_vm_readv(2)) must be in one user namespace.
    if (uid and not server) or _unshare(_CLONE_NEWNS):
        _check(_unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "a user namespace")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    # Nothing of ours may reach the node; what the node mounts later (automounter) may reach us.
    _mount("none", "/", "", _MS_REC | _MS_SLAVE)


def _make_view(plan: Plan) -> None:
    with _room_for(len(plan.steps) + 64):  # a descriptor for each source
        _mount_view(plan)


@contextmanager
def _room_for(files: int) -> Iterator[None]:
    """Raise the soft limit of open files for a while, if it is lower."""
    if files < 256:  # no limit of any use is lower
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files > soft:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (files if hard == resource.RLIM_INFINITY else min(files, hard), hard)
        )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _mount_view(plan: Plan) -> None:
    # All sources are opened first: the new root, or another mount, may cover the way to them.
    sources = [_clone(step.source, _ATTRIBUTES[step.kind]) if step.kind in _ATTRIBUTES else -1 for step in plan.steps]
    first = plan.steps[0]
    if first.target == "/":
        _move(sources[0], plan.anchor)
    else:
        _tmpfs(plan.anchor)
    root = os.open(plan.anchor, os.O_PATH | os.O_CLOEXEC)
    for step, source in zip(plan.steps, sources, strict=True):
        if step.target != "/":
            _do(step, source, plan.anchor, root)
        elif step.kind == "remount-ro":
            _set_attributes(root, _RDONLY, 0)
        if source >= 0:
            os.close(source)
    os.fchdir(root)
    os.close(root)
    _check(_syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    # The old root now lies over the new one (pivot_root(2), NOTES).
    _check(_umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def _do(step: Step, source: int, anchor: str, root: int) -> None:
    path = anchor + step.target
    if step.kind == "symlink":
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(step.source, path)
    elif step.kind == "remount-ro":
        target = _open_in(root, step.target)
        _set_attributes(target, _RDONLY, 0)
        os.close(target)
    elif step.kind in ("tmpfs", "dev"):
        os.makedirs(path, exist_ok=True)
        _tmpfs(path)
        if step.kind == "dev":
            _devices(path)
    else:
        _move_in(source, root, step.target, path)


def _move_in(source: int, root: int, target: str, path: str) -> None:
    try:
        where = _open_in(root, target)
    except FileNotFoundError:
        # Only where a directory was opened for it: udi_core.layout makes sure of that.
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.fstat(source).st_mode & 0o170000 == 0o040000:
            os.mkdir(path)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        where = _open_in(root, target)
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _check(_syscall(_MOVE_MOUNT, source, b"", where, b"", flags), target)
    os.close(where)


def _devices(path: str) -> None:
    """A minimal /dev: that of bubblewrap's ``--dev``."""
    devices = {name: f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    terminal = _terminal()
    if terminal:
        devices["console"] = terminal
    for name, device in devices.items():
        os.close(os.open(f"{path}/{name}", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        clone = _clone(device, _NOSUID)
        _move(clone, f"{path}/{name}")
        os.close(clone)
    links = {"fd": "/proc/self/fd", "core": "/proc/kcore", "ptmx": "pts/ptmx"}
    links |= {name: f"/proc/self/fd/{number}" for number, name in enumerate(("stdin", "stdout", "stderr"))}
    for name, target in links.items():
        os.symlink(target, f"{path}/{name}")
    for name in ("shm", "pts"):
        os.mkdir(f"{path}/{name}")
    _mount("devpts", f"{path}/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")


def _terminal() -> str:
    """The caller's terminal: its own name lies in another devpts, so the task would think that it has none."""
    for fd in (0, 1, 2):
        try:
            return os.ttyname(fd)
        except OSError:
            continue
    return ""


def _words(*values: int) -> bytes:
    """A structure of 64-bit integers."""
    return b"".join(value.to_bytes(8, sys.byteorder) for value in values)


def _clone(path: str, attributes: int) -> int:
    """A descriptor of a detached copy of a mount and all mounts in it, with attributes added."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    fd = _check(_syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), path)
    _set_attributes(fd, attributes, _AT_RECURSIVE)
    return fd


def _set_attributes(fd: int, attributes: int, recursive: int) -> None:
    how = _words(attributes, 0, 0, 0)  # struct mount_attr of linux/mount.h
    _check(_syscall(_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH | recursive, how, len(how)), "mount_setattr")


def _move(fd: int, path: str) -> None:
    _check(_syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH), path)


def _open_in(root: int, path: str) -> int:
    """A descriptor of a path, with every symbolic link on the way taken to lie in ``root``."""
    how = _words(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)  # struct open_how
    return _check(_syscall(_OPENAT2, root, os.fsencode(path), how, len(how)), path)


def _tmpfs(path: str) -> None:
    _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    names = [os.fsencode(text) if text else None for text in (source, target, kind)]
    _check(_mount_call(*names, clib.UnsignedLong(flags), data.encode() or None), target)


def fork_sibling() -> int:
    """fork(2), but the child's parent is this process's own: 0 in the child, its process id here.

    For a process with a single thread.  The child may execute a program or end by os._exit, nothing else: Python does
    not know that it is another process.  Source: clone3(2).
    """
    how = _CLONE_PARENT.to_bytes(8, sys.byteorder) + bytes(56)  # struct clone_args
    return _check(_syscall(_CLONE3, how, len(how)), "clone3")


def _drop_privileges() -> None:
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # An empty bounding set keeps the exec of uid 0 from bringing the capabilities back.
    number = 0
    while _prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    _prctl(_PR_CAP_AMBIENT, 4, 0, 0, 0)  # PR_CAP_AMBIENT_CLEAR_ALL
    header = (0x20080522).to_bytes(4, sys.byteorder) + bytes(4)  # _LINUX_CAPABILITY_VERSION_3, of this process
    _check(_capset(header, bytes(24)), "capset")


def execute(command: tuple[str, ...], env: Mapping[str, str]) -> NoReturn:
    """Execute a program in this process, with the messages and the exit codes of :mod:`udi_core.errors`.

    Raises:
        CommandNotFound, NotExecutable: it cannot be.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    program = command[0]
    # Not os.execvpe: it imports warnings, which the image's root does not have.
    directories = env.get("PATH", os.defpath).split(":")
    refused: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    for path in [program] if "/" in program else [f"{each or '.'}/{program}" for each in directories]:
        try:
            os.execve(path, command, env)  # noqa: S606 -- becoming the task is the point
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = error
            if error.errno == errno.ENOEXEC:
                _shell(path, command, env)
            if error.errno != errno.EACCES:
                break
    if refused.errno == errno.ENOENT:
        raise CommandNotFound(f"{program} is not in the image", str(refused)) from refused
    raise NotExecutable(f"{program} cannot be executed", str(refused)) from refused


def _shell(path: str, command: tuple[str, ...], env: Mapping[str, str]) -> None:
    """Give a script without "#!" to the shell, as execvp(3) does; return if there is no shell.

    Raises:
        NotExecutable: it is no script, but a program for another machine.
    """
    with suppress(OSError), open(path, "rb") as file:
        if file.read(4) == b"\x7fELF":
            raise NotExecutable(
                f"{command[0]} cannot be executed",
                f"{path} is a program for another kind of machine.",
                "Use the image of this node's platform: udi pull REF, without --platform.",
            )
    with suppress(FileNotFoundError):
        os.execve("/bin/sh", ("sh", path, *command[1:]), env)  # noqa: S606


def _check(result: int, what: str) -> int:
    if result < 0:
        code = clib.error()
        raise OSError(code, os.strerror(code), what)
    return result
