"""Temporary directories of long-lived processes, in a node's own directory: what a killed process leaves is found.

The process holds a flock(2) on its directory, which ends with it, whatever ends it.  So no age and no process id has
to be guessed about: a directory that can be locked is nobody's.

Layout below the node directory::

    tmp/<name>/
"""

from __future__ import annotations

import fcntl
import os
import tempfile

from udi_core.contexts import suppress
from udi_core.node_files import remove_tree, trusted

_NAME = "tmp"


def make(near: str) -> tuple[str, int]:
    """A new directory of mode 0700 below the node directory ``near``, and a descriptor that keeps it.

    Removes what processes that are dead have left.  Give both to :func:`remove` at the end.

    Raises:
        OSError: it cannot be made; PermissionError: the node directory is not the caller's alone.
    """
    os.makedirs(near, 0o700, exist_ok=True)
    if not trusted(near):
        raise PermissionError(f"{near} is not yours alone")
    sweep(near)
    while True:
        with suppress(FileExistsError):
            os.mkdir(f"{near}/{_NAME}", 0o700)
        with suppress(FileNotFoundError):  # swept between the making and the lock
            path = tempfile.mkdtemp(dir=f"{near}/{_NAME}")
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.isdir(path):
                return path, fd
            os.close(fd)


def remove(path: str, fd: int) -> None:
    """Remove a directory that :func:`make` made."""
    with suppress(OSError):
        remove_tree(path)
    os.close(fd)
    with suppress(OSError):  # of others
        os.rmdir(os.path.dirname(path))


def sweep(near: str) -> None:
    """Remove the directories of processes that are dead.  Idempotent; any number may do so at once."""
    top = f"{near}/{_NAME}"
    with suppress(OSError):
        for name in os.listdir(top):
            with suppress(OSError):
                _sweep(f"{top}/{name}")
        os.rmdir(top)


def _sweep(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(path)
    finally:
        os.close(fd)
