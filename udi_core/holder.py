"""The process beside a FUSE server: it waits until no task uses the mount, then takes it away.

Run as a script by ``python -I -S``, so it imports the standard library only.  One lives for each image that a
node shows by FUSE; it sleeps in flock(2), polls nothing and answers nobody.

``holder.py fuse|namespace SERVER SQUASHFS ROOT LOCK LEASE STATE LOG IDLE`` prints the server's pid when the mount
is there, and ends; what stays is a child in a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time

_START = 30.0  # seconds that a server may take to mount


def main(argv: list[str]) -> int:
    mode, server, squashfs, root, lock, lease, state, log, idle = argv
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with open(reader, "rb") as pipe:
            answer = pipe.read()
        if answer.isdigit():
            os.write(1, answer)
            return 0
        os.write(2, answer or b"the holder died")
        return 1
    os.setsid()
    os.close(reader)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.chdir("/")
    try:
        if mode == "namespace":
            _unshare()
        pid = _serve(server, squashfs, root, log)
    except Exception as error:
        os.write(writer, f"{error}\n{_tail(log)}".encode(errors="replace"))
        os._exit(1)
    os.write(writer, str(pid if mode == "fuse" else os.getpid()).encode())
    os.close(writer)
    signal.signal(signal.SIGCHLD, lambda *_: _leave(pid))
    signal.signal(signal.SIGTERM, lambda *_: _unmount_and_leave(mode, root))
    with contextlib.suppress(OSError):
        _wait_until_unused(lock, lease, float(idle))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(state)
        _unmount(mode, root)
    os._exit(0)


def _serve(server: str, squashfs: str, root: str, log: str) -> int:
    before = os.stat(root).st_dev
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    options = ["-o", "ro,nosuid,nodev"]
    pid = os.posix_spawn(
        server,
        [server, "-f", *options, squashfs, root],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)],
    )
    os.close(output)
    end = time.monotonic() + _START
    while os.stat(root).st_dev == before:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise RuntimeError("the server ended before the mount was there")
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"no mount after {_START:.0f} s")
        time.sleep(0.0005)
    return pid


def _wait_until_unused(lock: str, lease: str, idle: float) -> None:
    """Return with both locks held, once no task has held the lease for ``idle`` seconds."""
    lease_fd = os.open(lease, os.O_RDWR | os.O_CLOEXEC)
    lock_fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    while True:
        fcntl.flock(lease_fd, fcntl.LOCK_EX)  # sleeps until the last task has gone
        fcntl.flock(lease_fd, fcntl.LOCK_UN)
        rest = os.fstat(lease_fd).st_mtime + idle - time.time()
        if rest > 0:
            time.sleep(rest)
            continue
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        try:
            fcntl.flock(lease_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock_fd, fcntl.LOCK_UN)
            continue
        return


def _unmount(mode: str, root: str) -> None:
    # Lazily: the server goes on until the last namespace that still has the mount is gone.
    if mode == "fuse" and os.geteuid():
        pid = os.posix_spawnp("fusermount3", ["fusermount3", "-u", "-z", "-q", root], os.environ)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.waitpid(pid, 0)
    else:
        _libc().umount2(os.fsencode(root), 2)


def _unmount_and_leave(mode: str, root: str) -> None:
    _unmount(mode, root)
    os._exit(0)


def _leave(pid: int) -> None:
    if os.waitpid(pid, os.WNOHANG)[0]:
        os._exit(0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unshare() -> None:
    """Enter a new user and mount namespace in which the caller keeps its ids and may mount."""
    libc = _libc()

    def check(result: int, what: str) -> None:
        if result:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), what)

    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(0x10000000 | 0x20000), "unshare")  # CLONE_NEWUSER | CLONE_NEWNS
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    # Later mounts of the node (automounter) still reach tasks in here, ours do not reach the node.
    check(libc.mount(b"none", b"/", None, 0x4000 | 0x80000, None), "mount")  # MS_REC | MS_SLAVE
    # CAP_SYS_ADMIN must pass through the exec of a server that is not root: inheritable, then ambient.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    check(libc.capget(header, data), "capget")
    data[2] |= 1 << 21  # CAP_SYS_ADMIN
    check(libc.capset(header, data), "capset")
    check(libc.prctl(47, 2, 21, 0, 0), "prctl")  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE


def _tail(log: str) -> str:
    with contextlib.suppress(OSError), open(log, "rb") as file:
        return file.read()[-2000:].decode(errors="replace")
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
