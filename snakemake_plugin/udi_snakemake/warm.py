"""Warm starts: what was worked out for one job is used again for the next that differs in its last word only.

Snakemake starts hundreds of jobs whose command lines differ in the text behind ``bash -c``.  Working a launch out
costs little, but importing the code that does it costs 40 ms; a launch is a pure function of what it is made of, so the
result is kept for some minutes, beside all that it was made of, and used only where every bit of that is the same.

Imports nothing that is not built into the interpreter, and nothing of UDI.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import sys
import time

#: Seconds that a kept launch is used.  What is not compared (the node's /etc/passwd, for example) may be this old.
LIFETIME = 300.0
_KEEP = 3600.0
_VERSION = (1, sys.version)

Fingerprint = tuple[int, int, int] | None


def replay(program: str, argv: list[str]) -> None:
    """Become the program in the image, if this is a repetition; return at once if it is not.  Never raises."""
    try:
        cwd = os.getcwd()
        key = make_key(program, argv, dict(os.environ), cwd)
        with open(_path(key), "rb") as file:
            kept = marshal.load(file)  # noqa: S302 - ours alone: _path checks owner and mode of the directory
        if kept["version"] != _VERSION or kept["key"] != key or not 0 <= time.time() - kept["made"] < LIFETIME:
            return
        if any(fingerprint(path) != seen for path, seen in kept["inputs"]):
            return
        lease = _take_lease(kept["lease"])
        if lease < 0:
            return
        # The root directory of a dead or another mount has another device, or none (ENOTCONN).
        root = os.stat(kept["root"])
        if (root.st_dev, root.st_ino) != kept["mount"]:
            os.close(lease)
            return
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        return
    os.execve(kept["argv"][0], [*kept["argv"], argv[-1]], kept["env"])  # noqa: S606 - this is the point


def remember(
    program: str,
    argv: list[str],
    *,
    launch_argv: tuple[str, ...],
    launch_env: dict[str, str],
    lease_fd: int,
    root: str,
    inputs: list[str],
) -> None:
    """Keep a launch for :func:`replay`.  Atomic; a launch that cannot be kept is not, without a word.

    Args:
        argv: the front's own arguments; the last of them must be the last of ``launch_argv``.
        root: a path at which the mounted image can be looked at.
        inputs: files that the launch was made of, whether they exist or not.
    """
    if launch_argv[-1:] != tuple(argv[-1:]):
        return
    try:
        key = make_key(program, argv, dict(os.environ), os.getcwd())
        status = os.stat(root)
        kept = {
            "version": _VERSION,
            "key": key,
            "made": time.time(),
            "inputs": [(path, fingerprint(path)) for path in inputs],
            "lease": os.readlink(f"/proc/self/fd/{lease_fd}"),
            "root": root,
            "mount": (status.st_dev, status.st_ino),
            "argv": list(launch_argv[:-1]),
            "env": dict(launch_env),
        }
        path = _path(key)
        _forget_old(os.path.dirname(path))
        temporary = f"{path}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            marshal.dump(kept, file)
        os.rename(temporary, path)
    except (OSError, ValueError):
        return


def make_key(program: str, argv: list[str], environ: dict[str, str], cwd: str) -> list[str]:
    """All that a launch is made of, except for files and for the last word of the command line."""
    return [cwd, program, *argv[:-1], "", *(f"{name}={value}" for name, value in sorted(environ.items()))]


def fingerprint(path: str) -> Fingerprint:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _path(key: list[str]) -> str:
    """The file for a key, in a directory that nobody else can write to."""
    import zlib

    # Not the node directory of the configuration, which it takes the configuration to know.
    base = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108 - owner and mode are checked below
    directory = os.path.join(base, f"udi-front-{os.geteuid()}")
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        status = os.lstat(directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o170077 != 0o040000:
            raise OSError(f"{directory} is not ours alone") from None
    return os.path.join(directory, f"{zlib.crc32(chr(0).join(key).encode(errors='surrogateescape')):08x}")


def _take_lease(path: str) -> int:
    """A shared lock on the mount's lease file, as :mod:`udi_core.mount` takes it; -1 if the mount was taken away."""
    lease = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(lease, fcntl.LOCK_SH)
    try:
        if os.stat(path).st_ino != os.fstat(lease).st_ino:
            raise FileNotFoundError(path)
        os.utime(lease)
        os.set_inheritable(lease, True)
    except OSError:
        os.close(lease)
        return -1
    return lease


def _forget_old(directory: str) -> None:
    now = time.time()
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        try:
            if now - os.lstat(path).st_mtime > _KEEP:
                os.unlink(path)
        except OSError:
            continue
