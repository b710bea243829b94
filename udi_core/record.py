"""The run record: what ran where, one line of JSON for each thing that happened.

Lines go to a file in the node directory, so that a task costs the shared file system nothing; at the end of a job
``udi node clean`` moves the file to ``record_dir``.  A line is written in one ``write`` to a descriptor in append
mode, which no other writer's line can get into (write(2)), and is at most 4 KiB long.

Nothing here raises because of the file: a task runs whether it can be recorded or not.  Imports nothing that a
process which becomes a task has not loaded anyway.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import time

from udi_core.contexts import suppress
from udi_core.node_files import trusted

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping

    from udi_core.config import Config

NAME = "record.jsonl"
# Node-local directories are often in memory: of a node that nobody ever cleans, the last lines are kept.
_MOST = 32 << 20
_LONGEST_TEXT = 512
_NONE = "", 0, -1, (0, 0)
_kept = _NONE
# The threads of a process share the kept descriptor, and so its flock: without a lock of their own one would let go of
# it, or close it, while another writes.
_writing = _thread.allocate_lock()


def path(config: Config) -> str:
    """The file of this node, or "" where the configuration switches the record off."""
    return f"{config.node_dir}/{NAME}" if config.record_dir else ""


def head(by: str, image: str, reference: str, backend: str, uid: int, environ: Mapping[str, str], program: str) -> str:
    """The beginning of a line: what is known before the thing happens.

    A shell can make it a whole line: it adds ``,"start":SECONDS}``.
    """
    node = environ.get("SLURMD_NODENAME") or os.uname().nodename
    texts = {"by": by, "image": image, "reference": reference, "backend": backend, "node": node, "program": program}
    job = environ.get("SLURM_JOB_ID", "")
    if job:
        texts["job"] = job
    return "{" + ",".join(f'"{name}":{_quoted(text)}' for name, text in texts.items()) + f',"uid":{uid}'


def write(file: str, beginning: str, *, task: str = "", **fields: float) -> None:
    """Append one line to the record, if ``file`` names one.

    Args:
        beginning: what :func:`head` made.
        task: a name for this one of many tasks of the same program.
        fields: ``start``, seconds since 1970 (now, if it is left out); ``setup``, seconds until the task began;
            ``seconds`` that it took; ``exit``, its status; ``cpu``, seconds; ``rss`` and ``bytes``, bytes.
    """
    if not file:
        return
    start = fields.pop("start", None) or time.time()
    text = f',"task":{_quoted(task)}' if task else ""
    numbers = "".join(f',"{name}":{value:.6g}' for name, value in fields.items())
    append(file, f'{beginning}{text},"start":{start:.6f}{numbers}}}\n'.encode(errors="replace"))


def append(file: str, line: bytes) -> None:
    """Append a whole line, which ends with a newline, to the record."""
    with _writing:
        try:
            fd = _locked(file)
            try:
                os.write(fd, line)
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError:
            return


def collect(config: Config) -> list[str]:
    """Move this node's record to ``record_dir``; the files that it became there.

    What an earlier call could not move comes along.  Atomic for readers, and no line is lost or doubled, whatever
    tasks write, and whoever collects meanwhile.
    """
    file = path(config)
    if not file:
        return []
    with suppress(OSError):
        os.rename(file, f"{file}.{os.getpid()}.{time.time_ns()}")
    found: list[str] = []
    with suppress(OSError):  # full or read-only: what was taken stays in the node directory
        for name in sorted(os.listdir(config.node_dir)):
            if name.startswith(f"{NAME}."):
                found += _hand_in(f"{config.node_dir}/{name}", config.record_dir)
    return found


def _hand_in(taken: str, directory: str) -> list[str]:
    fd = os.open(taken, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # whoever opened it under its old name has written by now
        if not os.fstat(fd).st_nlink:
            return []  # another one handed it in meanwhile
        os.makedirs(directory, 0o700, exist_ok=True)
        name = f"{os.environ.get('SLURMD_NODENAME') or os.uname().nodename}.{os.geteuid()}.{time.time_ns()}.jsonl"
        target = os.path.join(directory, name)
        part = os.path.join(directory, f".{name}.part")
        try:
            with open(fd, "rb", closefd=False) as source, open(part, "wb") as copy:
                while block := source.read(1 << 20):
                    copy.write(block)
            os.rename(part, target)
        except OSError:
            with suppress(OSError):
                os.unlink(part)
            raise
        os.unlink(taken)
        return [target]
    finally:
        os.close(fd)


def _after_fork() -> None:
    global _writing
    _writing = _thread.allocate_lock()  # the one that held it may not exist here


os.register_at_fork(after_in_child=_after_fork)


def _locked(file: str) -> int:
    """A descriptor to append to, with a shared lock that keeps :func:`collect` from reading too early.

    It is kept for the next line: a worker writes one for each task of a millisecond.
    """
    global _kept
    known, pid, fd, inode = _kept
    if known == file and pid == os.getpid():  # a child's flock would be its parent's too
        fcntl.flock(fd, fcntl.LOCK_SH)
        status = os.fstat(fd)
        # Whoever closes all descriptors of a process closes this one too, and its number goes to another file.
        if inode == (status.st_dev, status.st_ino) and status.st_nlink and status.st_size < _MOST:
            return fd
        if inode == (status.st_dev, status.st_ino):
            os.close(fd)
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)
        _kept = _NONE
    fd = _open(file)
    status = os.fstat(fd)
    _kept = file, os.getpid(), fd, (status.st_dev, status.st_ino)
    return fd


def _open(file: str) -> int:
    directory = os.path.dirname(file)
    try:
        usable = trusted(directory)
    except FileNotFoundError:  # a pull, before anything was mounted
        os.makedirs(directory, 0o700)
        usable = trusted(directory)
    if not usable:
        raise PermissionError(directory)
    while True:
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            status = os.fstat(fd)
            if status.st_nlink and status.st_size < _MOST:
                return fd
            if status.st_nlink and os.path.samestat(status, os.stat(file)):
                os.rename(file, file + ".old")
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # collected or put aside between our open and our lock


def _quoted(text: str) -> str:
    text = text[:_LONGEST_TEXT]
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    import json  # 12 ms, for texts that hardly any image has

    return json.dumps(text)
