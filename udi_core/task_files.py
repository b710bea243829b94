"""Tasks whose end only bubblewrap sees: a small file for each, which it completes when the task has ended.

A process that becomes bubblewrap cannot write down how the task ended.  bubblewrap can (``--json-status-fd``): it
appends ``{ "exit-code": N }`` to a descriptor that it was given.  So the beginning of the task's line in the run
record goes to a file of its own, and that file's times are the task's: it was created when the task began, and last
written to when it ended.  They come from the kernel's coarse clock, so they are right to some milliseconds.

:func:`settle` makes lines of the record out of the files of tasks that have ended.  Whether bubblewrap lives the
kernel says itself: nobody gets a read lease on a file that is open for writing (fcntl(2), F_SETLEASE).

Layout below the node directory::

    tasks/<name>     the line's beginning; bubblewrap's documents, each on a line
"""

from __future__ import annotations

import fcntl
import os
import time

from udi_core import record
from udi_core.contexts import suppress
from udi_core.node_files import trusted

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator

    from udi_core.config import Config

_NAME = "tasks"
_MOST = 256
_EXIT = b'{ "exit-code": '


def begin(file: str, beginning: str, *, start: float, setup: float) -> int:
    """An inheritable descriptor for bubblewrap, or -1 if nothing is recorded or can be.

    Args:
        file: the run record, or "".
        beginning: what :func:`udi_core.record.head` made.
        start: seconds since 1970; ``setup`` seconds later the task began.
    """
    if not file:
        return -1
    try:
        path = f"{prepare(file)}/{os.getpid()}-{time.time_ns()}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(OSError):
            os.write(fd, f'{beginning},"start":{start:.6f},"setup":{setup:.6g}}}\n'.encode(errors="replace"))
        os.set_inheritable(fd, True)
        return fd
    except OSError:
        return -1


def prepare(file: str) -> str:
    """The directory of these files beside the run record ``file``, made if need be; settled if there are many in it.

    Raises:
        OSError: it cannot be made, or is not ours alone.
    """
    directory = os.path.dirname(file)
    if not trusted(directory):
        raise PermissionError(directory)
    path = f"{directory}/{_NAME}"
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        os.mkdir(path, 0o700)
        return path
    if len(names) > _MOST:
        _settle(file, path, names)
    return path


def settle(config: Config) -> None:
    """Give the run record the lines of all tasks that have ended.  Idempotent; any number may do so at once."""
    file = record.path(config)
    if file:
        path = f"{config.node_dir}/{_NAME}"
        with suppress(OSError):
            _settle(file, path, os.listdir(path))
        with suppress(OSError):  # of those that go on
            os.rmdir(path)


def running(config: Config) -> Iterator[str]:
    """Lines of tasks that have not ended, without how they do."""
    path = f"{config.node_dir}/{_NAME}"
    with suppress(OSError):
        for name in os.listdir(path):
            with suppress(OSError):
                content, status, _ = _read(f"{path}/{name}")
                yield _begun(content.partition(b"\n")[0], status).decode(errors="replace") + "}"


def _settle(file: str, path: str, names: list[str]) -> None:
    for name in names:
        with suppress(OSError):
            line = _ended(f"{path}/{name}")
            if line:
                os.unlink(f"{path}/{name}")  # whoever does so writes the line
                record.append(file, line)


def _ended(path: str) -> bytes:
    """The line of a task, or b"" while it runs.

    Raises:
        OSError: somebody else has settled it.
    """
    content, status, free = _read(path)
    head, _, said = content.partition(b"\n")
    code = said.rpartition(_EXIT)[2].partition(b" ")[0] if _EXIT in said else b""
    if code.isdigit():
        began = _began(head, status)
        return b'%s,"seconds":%.6g,"exit":%s}\n' % (_begun(head, status), max(0.0, status.st_mtime - began), code)
    # bubblewrap was killed, and so was the task; when, nobody knows.
    return b'%s,"exit":-1}\n' % _begun(head, status) if free else b""


def _read(path: str) -> tuple[bytes, os.stat_result, bool]:
    """A file's content, its times, and whether nobody will write to it any more."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME)  # reading must not change its times
    try:
        free = _is_free(fd)  # before the rest: what was there when it was free is all there will ever be
        return os.read(fd, 1 << 16), os.fstat(fd), free
    finally:
        os.close(fd)


def _is_free(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True
    except OSError:
        return False


def _begun(head: bytes, status: os.stat_result) -> bytes:
    """A line's beginning, with its start: a shell, which has no clock that costs nothing, left that to the file."""
    head = head.strip().removesuffix(b"}")
    return head if b',"start":' in head else b'%s,"start":%.6f' % (head, status.st_atime)


def _began(head: bytes, status: os.stat_result) -> float:
    """When the task itself began."""
    after = head.rpartition(b',"start":')[2]
    start, _, setup = after.rstrip(b"}\n").partition(b',"setup":')
    try:
        return float(start) + float(setup or 0)
    except ValueError:
        return status.st_atime
