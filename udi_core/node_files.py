"""Small files in a node's own directory: whether the directory can be trusted, and copies of the store's records.

A parallel file system answers ``stat`` of a known file from the client's cache, but sends every ``open`` to its
metadata server.  What every task reads is therefore copied to the node, and the copy is used while ``stat`` tells
that the original is the same file.
"""

from __future__ import annotations

import fcntl
import os
import zlib

_COPIES = "seen"


def trusted(directory: str) -> bool:
    """Whether a directory is the caller's own, and nobody else can put anything into it.

    Raises:
        FileNotFoundError: it is not there.
    """
    status = os.lstat(directory)
    return status.st_uid == os.geteuid() and status.st_mode & 0o170022 == 0o040000


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
