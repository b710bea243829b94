"""The process beside a FUSE server: it waits until no task uses the mount, then takes it away.

Run as a script by ``python -I -S``, so it imports the standard library only.  One lives for each image that a
user's tasks see by FUSE; it sleeps in flock(2), polls nothing and answers nobody.  If it is killed, the mount
stays until the next ``udi`` that looks after the node.

``holder.py MODE SERVER OPTIONS SQUASHFS ROOT LOCK LEASE STATE LOG MARK IDLE`` prints the server's pid when the
mount is there, and ends; what stays is a child in a session of its own.  MODE is ``fuse`` (the mount is made by
fusermount3, or by root) or ``namespace`` (it is made in a new user and mount namespace).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time

_START = 50.0  # seconds that a server may take to mount
_RENEW = 6 * 3600.0  # seconds between renewals of the mark of use in the store

_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: list[str]) -> int:
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
    os.close(reader)
    try:
        _hold(writer, *argv)
    finally:
        os._exit(1)


def _hold(
    answer: int,
    mode: str,
    server: str,
    options: str,
    squashfs: str,
    root: str,
    lock: str,
    lease: str,
    state: str,
    log: str,
    mark: str,
    idle: str,
) -> None:
    # A session of its own, so that Ctrl-C in the terminal of the first task ends that task only.
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    pid = 0
    try:
        if mode == "namespace":
            _unshare()
        pid = _serve([server, "-f", "-o", options, squashfs, root], root, log)
    except Exception as error:
        os.write(answer, f"{error}\n{_tail(log)}".encode(errors="replace"))
        os._exit(1)
    os.write(answer, str(pid).encode())
    os.close(answer)

    def server_ended(*_: object) -> None:
        if os.waitpid(pid, os.WNOHANG)[0]:
            os._exit(0)

    signal.signal(signal.SIGCHLD, server_ended)
    server_ended()

    def renew(*_: object) -> None:
        with contextlib.suppress(OSError):
            os.utime(mark)

    signal.signal(signal.SIGALRM, renew)  # flock(2) and sleep go on behind the handler
    signal.setitimer(signal.ITIMER_REAL, _RENEW, _RENEW)
    with contextlib.suppress(FileNotFoundError):  # the node directory itself was removed
        _wait_until_unused(lock, lease, float(idle))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for path in (state, mark):
            with contextlib.suppress(OSError):
                os.unlink(path)
        _unmount(mode, root)
    os._exit(0)


def _serve(argv: list[str], root: str, log: str) -> int:
    before = os.stat(root).st_dev
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    streams = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=streams)
    os.close(output)
    end = time.monotonic() + _START
    while os.stat(root).st_dev == before:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise RuntimeError("the server ended before the mount was there")
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"there was no mount after {_START:.0f} s")
        time.sleep(0.0005)
    return pid


def _wait_until_unused(lock: str, lease: str, idle: float) -> None:
    """Return with both locks held, once no task has held the lease for ``idle`` seconds."""
    lease_fd = os.open(lease, os.O_RDWR | os.O_CLOEXEC)
    lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        fcntl.flock(lease_fd, fcntl.LOCK_EX)  # sleeps until the last task has gone
        used = os.fstat(lease_fd).st_mtime_ns
        fcntl.flock(lease_fd, fcntl.LOCK_UN)
        time.sleep(idle)
        if os.fstat(lease_fd).st_mtime_ns != used:
            continue  # somebody came meanwhile: the time begins anew when he has gone
        # The order of locks is that of tasks: a task has its lease before it asks for the lock.
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        try:
            fcntl.flock(lease_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock_fd, fcntl.LOCK_UN)
            continue
        if os.stat(lease).st_ino != os.fstat(lease_fd).st_ino:
            os._exit(0)  # somebody cleaned up, and what is here now is not ours
        return


def _unmount(mode: str, root: str) -> None:
    # Lazily: the server goes on until the last namespace that still has the mount is gone.
    if mode == "fuse" and os.geteuid():
        pid = os.posix_spawnp("fusermount3", ["fusermount3", "-u", "-z", "-q", root], os.environ)
        os.waitpid(pid, 0)
    else:
        _libc.umount2(os.fsencode(root), 2)  # MNT_DETACH


def _unshare() -> None:
    """Enter a new user and mount namespace in which the caller keeps its ids and may mount."""

    def check(result: int, what: str) -> None:
        if result:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")

    uid, gid = os.geteuid(), os.getegid()
    check(_libc.unshare(0x10000000 | 0x20000), "a user namespace cannot be made")  # CLONE_NEWUSER | CLONE_NEWNS
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    # Later mounts of the node (automounter) still reach tasks in here, ours do not reach the node.
    check(_libc.mount(b"none", b"/", None, 0x4000 | 0x80000, None), "mount")  # MS_REC | MS_SLAVE
    # CAP_SYS_ADMIN must pass through the exec of a server that is not root: inheritable, then ambient.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    check(_libc.capget(header, data), "capget")
    data[2] |= 1 << 21  # CAP_SYS_ADMIN
    check(_libc.capset(header, data), "capset")
    check(_libc.prctl(47, 2, 21, 0, 0), "prctl")  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE


def _tail(log: str) -> str:
    with contextlib.suppress(OSError), open(log, "rb") as file:
        return file.read()[-2000:].decode(errors="replace")
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
