"""A stand-in for a parallel file system: a FUSE pass-through that counts operations and delays metadata.

A parallel file system answers look-ups from a few metadata servers, over a network.  What a design costs there
is the *number* of metadata operations, and that number can be counted exactly on one machine.  By default nothing
is cached on the client side (all time-outs are zero), so every look-up of every path component is seen here;
with a ``lifetime`` the kernel keeps names and attributes that long, as a client that holds locks on them does.

Needs ``fusermount3`` and libfuse3, and the package ``mfusepy``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from udi_core import _process

TOOLS = ("fusermount3",)
#: Operations that a parallel file system sends to its data servers, not to the metadata server.
DATA_OPERATIONS = frozenset({"read", "write", "flush", "fsync", "release", "releasedir"})
_COUNTS = "user.sharedfs.counts"
_RESET = "user.sharedfs.reset"
_UTIME_NOW = (1 << 30) - 1  # utimensat(2); libfuse hands it on


class SharedFileSystem:
    """A mounted pass-through; ``path`` is where it is mounted."""

    def __init__(self, path: str) -> None:
        self.path = path

    def counts(self) -> dict[str, int]:
        """Operations since the last :meth:`reset`, by name."""
        found: dict[str, int] = json.loads(os.getxattr(self.path, _COUNTS))
        return found

    def metadata(self) -> int:
        """Metadata operations since the last :meth:`reset`."""
        return sum(count for name, count in self.counts().items() if name not in DATA_OPERATIONS)

    def reset(self) -> None:
        os.setxattr(self.path, _RESET, b"")


@contextlib.contextmanager
def shared_file_system(
    backing: Path, mountpoint: Path, *, delay: float = 0.0, lifetime: float = 0.0
) -> Iterator[SharedFileSystem]:
    """Mount ``backing`` on ``mountpoint``; every metadata operation takes ``delay`` seconds longer.

    ``lifetime``: seconds for which a client believes what it has been told of a name.
    """
    backing.mkdir(parents=True, exist_ok=True)
    mountpoint.mkdir(parents=True, exist_ok=True)
    before = mountpoint.stat().st_dev
    argv = [sys.executable, str(Path(__file__).resolve()), str(backing), str(mountpoint), str(delay), str(lifetime)]
    server = _process.spawn(argv, stdin=_process.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while mountpoint.stat().st_dev == before:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the shared file system did not mount")
            time.sleep(0.02)
        yield SharedFileSystem(str(mountpoint))
    finally:
        _process.run(["fusermount3", "-u", "-z", str(mountpoint)], check=False)
        with contextlib.suppress(_process.TimeoutExpired):
            server.wait(timeout=10)
        server.kill()
        server.wait()


def _serve(backing: str, mountpoint: str, delay: float, lifetime: float) -> None:
    import mfusepy  # only the server process needs it

    fields = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def counted(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, path: str, *args: Any) -> Any:
            with lock:
                counts[name] += 1
            if delay and name not in DATA_OPERATIONS:
                time.sleep(delay)
            return operation(self, backing + path, *args)

        return call

    class PassThrough(mfusepy.Operations):  # type: ignore[misc, name-defined, unused-ignore]
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            seen = os.lstat(path) if fh is None else os.fstat(fh)
            times = {"st_atime": seen.st_atime_ns, "st_mtime": seen.st_mtime_ns, "st_ctime": seen.st_ctime_ns}
            return {**{name: getattr(seen, name) for name in fields}, **times}

        def access(self, path: str, mode: int) -> int:
            if not os.access(path, mode):
                raise mfusepy.FuseOSError(errno.EACCES)
            return 0

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(path)]

        def opendir(self, path: str) -> int:
            return 0

        def releasedir(self, path: str, fh: int) -> int:
            return 0

        def readlink(self, path: str) -> str:
            return os.readlink(path)

        def open(self, path: str, flags: int) -> int:
            # FUSE hands O_APPEND's offsets over itself; with it, pwrite(2) would ignore them.
            return os.open(path, flags & ~os.O_APPEND)

        def create(self, path: str, mode: int, info: Any = None) -> int:
            return os.open(path, os.O_RDWR | os.O_CREAT, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            os.truncate(path if fh is None else fh, length)

        def flush(self, path: str, fh: int) -> int:
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            return 0

        def mkdir(self, path: str, mode: int) -> None:
            os.mkdir(path, mode)

        def rmdir(self, path: str) -> None:
            os.rmdir(path)

        def unlink(self, path: str) -> None:
            os.unlink(path)

        def rename(self, path: str, new: str, flags: int = 0) -> None:
            os.rename(path, backing + new)

        def link(self, path: str, source: str) -> None:
            os.link(backing + source, path)

        def symlink(self, path: str, source: str) -> None:
            os.symlink(source, path)

        def chmod(self, path: str, mode: int) -> None:
            os.chmod(path, mode)

        def chown(self, path: str, uid: int, gid: int) -> None:
            os.chown(path, uid, gid, follow_symlinks=False)

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
            if times is None or _UTIME_NOW in times:
                os.utime(path, follow_symlinks=False)
            else:
                os.utime(path, ns=times, follow_symlinks=False)

        def statfs(self, path: str) -> dict[str, int]:
            seen = os.statvfs(path)
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize")
            return {name: getattr(seen, name) for name in (*names, "f_namemax")}

    for name, operation in list(vars(PassThrough).items()):
        if callable(operation) and not name.startswith("_"):
            setattr(PassThrough, name, counted(name, operation))

    class Counting(PassThrough):
        """The counters themselves, read and reset through attributes of the root, are not counted."""

        def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
            if (path, name) != ("/", _COUNTS):
                raise mfusepy.FuseOSError(errno.ENOTSUP)
            with lock:
                return json.dumps(counts).encode()

        def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
            if (path, name) != ("/", _RESET):
                raise mfusepy.FuseOSError(errno.ENOTSUP)
            with lock:
                counts.clear()
            return 0

    # attr_timeout and its kin at zero: the kernel asks again for every path component.
    options = {f"{name}_timeout": lifetime for name in ("attr", "entry", "negative")}
    options["allow_other"] = os.geteuid() == 0
    mfusepy.FUSE(Counting(), mountpoint, foreground=True, nothreads=False, fsname="sharedfs", **options)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
