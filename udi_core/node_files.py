"""Small files in a node's own directory: whether the directory can be trusted, and copies of the store's records.

A parallel file system answers ``stat`` of a known file from the client's cache, but sends every ``open`` to its
metadata server.  What every task reads is therefore copied to the node, and the copy is used while ``stat`` tells
that the original is the same file.
"""

from __future__ import annotations

import fcntl
import os
import stat
import zlib

from udi_core.errors import ConfigError

_COPIES = "seen"
# File systems that several nodes see: the locks and mounts in here are of one node.
_NETWORK = frozenset({"nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "ceph", "beegfs", "pvfs2", "panfs", "afs"})


def trusted(directory: str) -> bool:
    """Whether a directory is the caller's own, and nobody else can put anything into it.

    Raises:
        FileNotFoundError: it is not there.
    """
    status = os.lstat(directory)
    return status.st_uid == os.geteuid() and status.st_mode & 0o170022 == 0o040000


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


def check_node_local(directory: str) -> None:
    """Make sure that other nodes do not see a directory: its locks and mounts are of one node.

    Raises:
        ConfigError: they do.
    """
    kind = _file_system(directory)
    if kind in _NETWORK or (kind.startswith("fuse.") and kind != "fuse.fuse-overlayfs"):
        raise ConfigError(
            f"The node directory {directory} is not on this node",
            f"It is on a file system of type {kind}, which other nodes may see as well.",
            "Set node_dir in the configuration, or UDI_NODE_DIR, to a directory in /tmp, /run or /dev/shm.",
        )


def read_near(path: str, near: str) -> bytes:
    """The content of a file that is only ever replaced by rename(2), never written again.

    Once read, it costs a ``stat`` of ``path`` and no ``open`` on this node.  ``near`` is the node directory, made if
    need be; with "", or one that is not trusted, the file itself is read.

    Raises:
        OSError: as open(2).
    """
    if not near:
        return _read(path)[0]
    stamp = _stamp(path, os.stat(path))
    copy = f"{near}/{_COPIES}/{zlib.crc32(os.fsencode(path)):08x}"
    try:
        if not _usable(near):
            return _read(path)[0]
        content = _copied(copy, stamp)
        if content is not None:
            return content
        with open(f"{copy}.lock", "wb") as lock:
            # Of many tasks that start on a cold node at once, one asks the shared file system.
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = _copied(copy, stamp)
            if content is None:
                content, status = _read(path)
                _write(copy, _stamp(path, status) + b"\n" + content)
            return content
    except OSError:  # a full disk, say; or the original is gone
        return _read(path)[0]


def forget(near: str) -> None:
    """Delete all copies.  Idempotent; a task that reads meanwhile may make one anew."""
    directory = f"{near}/{_COPIES}"
    try:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except OSError:
        return


def remove_tree(path: str) -> None:
    """Remove a directory and all that is in it, also where its owner may not write.  Idempotent.

    However deep it is: an image may hold directories in directories as far as a path reaches, and the standard
    library's ways go no deeper than Python's stack.
    """
    if not os.path.lexists(path):
        return
    waiting, found = [path], []
    while waiting:
        directory = waiting.pop()
        found.append(directory)
        os.chmod(directory, 0o700)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    os.unlink(entry.path)
    for directory in reversed(found):
        os.rmdir(directory)


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


def _read(path: str) -> tuple[bytes, os.stat_result]:
    with open(path, "rb") as file:
        return file.read(), os.fstat(file.fileno())


def _usable(near: str) -> bool:
    directory = f"{near}/{_COPIES}"
    try:
        return trusted(near) and trusted(directory)
    except FileNotFoundError:
        os.makedirs(near, 0o700, exist_ok=True)
        if trusted(near):
            os.makedirs(directory, 0o700, exist_ok=True)
            return True
        return False


def _copied(copy: str, stamp: bytes) -> bytes | None:
    try:
        head, _, content = _read(copy)[0].partition(b"\n")
    except FileNotFoundError:
        return None
    return content if head == stamp else None


def _write(copy: str, content: bytes) -> None:
    with open(os.open(f"{copy}.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
    os.rename(f"{copy}.part", copy)


def _stamp(path: str, status: os.stat_result) -> bytes:
    return f"{path!r} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}".encode(errors="replace")
