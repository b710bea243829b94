"""A sandbox that stands, and the jobs in it, as Snakemake's process sees them: the other end of udi_core/spares.py."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

#: Seconds that a sandbox stands; as long as :mod:`udi_snakemake.warm` repeats a launch.
LIFETIME = 300
#: Seconds after which a file's time tells whether it was written again.
_SETTLED = 2
#: Seconds for which files that were looked at are not looked at again.  A thread that asks the system lets go of the
#: interpreter, and often has to wait 5 ms until it has it back.
_MOMENT = 1
_LONGEST_WAIT = 60
_LONGEST_ANSWER = 1 << 16


class Job:
    """A task, as Snakemake knows one: what it uses of subprocess.Popen.

    ``at_end`` is called once, with the exit status, by the thread that waits.
    """

    def __init__(self, args: str, pid: int) -> None:
        self.args, self.pid = args, pid
        self.at_end: Callable[[int], None] = lambda status: None
        self.stdin = self.stderr = None
        self.stdout: Any = None
        self.returncode: int | None = None
        self._fd = os.pidfd_open(pid)
        self._lock = threading.Lock()
        self._signalled = False

    def wait(self) -> int:
        """Wait for its end; the exit status, which for a signal is what the front's would be."""
        return self._ended(os.WEXITED) or 0

    def poll(self) -> int | None:
        return self._ended(os.WEXITED | os.WNOHANG)

    def _ended(self, options: int) -> int | None:
        if self.returncode is None:
            found = os.waitid(os.P_PIDFD, self._fd, options)
            if found is None:
                return None
            with self._lock:
                status = found.si_status
                if found.si_code != os.CLD_EXITED:
                    # bubblewrap, which stands between the front and the program, makes a status of a signal.
                    status = -status if self._signalled else 128 + status
                self.returncode = status
                os.close(self._fd)
            self.at_end(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        with self._lock:
            if self.returncode is None:
                self._signalled = True
                signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class NotStarted(Exception):
    """A job that has to start in another way."""


class Sandbox:
    """One that stands: its process, the connection, and what it was made of."""

    def __init__(self, process: Any, connection: socket.socket) -> None:
        """Wait until it stands.

        Raises:
            OSError, ValueError: it does not.
        """
        self._process, self._connection = process, connection
        self._lock = threading.Lock()
        self._born = self._looked = time.monotonic()
        self._closed = False
        hello = connection.recv(_LONGEST_ANSWER).decode(errors="surrogateescape")
        file, head, *inputs = hello.split("\0")
        self.record = file, head
        self._inputs = {path: _seen(path) for path in inputs}
        # A process that is killed at the wrong moment never answers; another one still has the connection open.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _LONGEST_WAIT, 0))

    def settled(self) -> bool:
        """Whether each file is old enough for a change to be seen in its times, whatever its file system's clock."""
        newest = max((max(seen[-2:]) for seen in self._inputs.values() if seen), default=0)
        return time.time() - newest / 1e9 >= _SETTLED

    def fresh(self) -> bool:
        """Whether it is young, and all that it was made of is as it was, or was a moment ago."""
        now = time.monotonic()
        if now - self._looked < _MOMENT:
            return True
        self._looked = now
        return now - self._born < LIFETIME and all(_seen(path) == seen for path, seen in self._inputs.items())

    def start(self, args: str, word: str, stdout: int | None) -> Job:
        """Start a job whose command ends with ``word``.

        Args:
            args: its command line, as Snakemake has it.
            stdout: a descriptor; None for this process's own.

        Raises:
            NotStarted: it has not been.
            OSError: it may have been.
        """
        with self._lock:
            if self._closed:
                raise NotStarted("it was closed")
            try:
                socket.send_fds(self._connection, [b"+" + os.fsencode(word)], [0, 1 if stdout is None else stdout, 2])
            except OSError as error:
                raise NotStarted(str(error)) from error
            try:
                answer = self._connection.recv(_LONGEST_ANSWER)
            except ConnectionResetError as error:  # it ended before it read what was sent
                raise NotStarted(str(error)) from error
        if answer.startswith(b"!"):
            raise NotStarted(answer[1:].decode(errors="replace"))
        if not answer:
            raise OSError("UDI's process in the image ended while it started a job; whether the job runs is not known")
        return Job(args, int(answer))

    def close(self) -> None:
        """Let it end, and wait for that; its jobs go on."""
        with self._lock, self._connection:
            self._closed = True
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
                while answer := self._connection.recv(_LONGEST_ANSWER):
                    if answer.startswith(b"-"):  # a process that waited for a job in vain, and a child of ours
                        os.waitpid(int(answer[1:]), 0)
        self._process.wait()


def _seen(path: str) -> tuple[int, ...]:
    """What is known of a file without reading it; nothing if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
