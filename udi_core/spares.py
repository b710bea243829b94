"""The process of a sandbox that stands: spare processes wait in it; one takes the next task and executes it.

They are children of the program that gives the tasks, not of this process (clone3(2), CLONE_PARENT): it waits for
tasks, kills them and finds them as if it had started them itself.  A spare is forked while nothing else is to do, so
that a task waits for an exec only.  This process stays small, for the sake of the forks: it imports next to nothing.

The connection is a SOCK_SEQPACKET socket, at first the standard input::

    this process:  FILE \\0 HEAD [\\0 INPUT]...  it stands: the run record's file and beginning of a line; the inputs
    the program:   + WORD                      start the command with this last word; with three descriptors
    a spare:       PID                         runs it;  ! REASON: does not;  - PID: ends, since the program has closed
"""

from __future__ import annotations

import _socket  # socket imports selectors and enum
import gc
import marshal
import os
import select

from udi_core import clib
from udi_core.become import die_with_parent, execute, fork_sibling, go_in, restore_signals
from udi_core.contexts import suppress
from udi_core.errors import UdiError
from udi_core.layout import Plan, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

#: So many tasks begin at once without waiting for a fork.
_SPARES = 2
#: Milliseconds after a task began in which it has the processor to itself, and most short ones end.
_LULL = 5
#: No argument of a program is longer (MAX_ARG_STRLEN, execve(2)).
_LONGEST = 1 << 17
_FD = memoryview(b"").cast("i").itemsize
_SIGINT, _SIG_DFL, _SIG_IGN = 2, 0, 1

_signal = clib.function("signal")


def main(plan: int) -> NoReturn:
    """Go into the sandbox, say so, and keep spares until the program closes the connection or ends.

    Args:
        plan: descriptor of what :func:`udi_core.standing.stand` wrote.
    """
    with open(plan, "rb") as file:
        (server, anchor, steps, command, env, workdir, dies), leases, root, hello = marshal.load(file)  # noqa: S302
    there = Plan(
        server=server,
        anchor=anchor,
        steps=tuple(Step(*step) for step in steps),
        command=command,
        env=env,
        workdir=workdir,
        die_with_parent=dies,
    )
    connection = _socket.socket(fileno=os.dup(0))
    Spares(there, connection, root, leases).keep(hello.encode(errors="surrogateescape"))


class Spares:
    """The processes that wait for tasks of one plan."""

    def __init__(self, plan: Plan, connection: _socket.socket, root: str, leases: Iterable[int]) -> None:
        self._plan, self._connection, self._leases = plan, connection, leases
        self._image = os.open(root, os.O_PATH | os.O_CLOEXEC)
        self._parent = os.getppid()
        self._interrupt = _SIG_DFL

    def keep(self, hello: bytes) -> NoReturn:
        """Go in, and have spares at hand until the other end closes.

        Raises:
            LaunchError: the sandbox could not be built.
        """
        go_in(self._plan)  # while standard output is still the caller's, whose terminal the tasks have
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number in (0, 1, 2):
            os.dup2(null, number)
        restore_signals()
        # Control-C is for the tasks, and for the program.
        self._interrupt = _SIG_IGN if _on_interrupt(_SIG_IGN) == _SIG_IGN else _SIG_DFL
        gc.collect()
        gc.freeze()  # a collection in a child would copy the pages that it shares
        self._connection.send(hello)
        events = select.poll()
        events.register(self._connection, select.POLLRDHUP)
        waiting = 0
        while True:
            found = events.poll(_LULL if 0 < waiting < _SPARES else None if waiting else 0)
            for fd, _ in found:
                if fd == self._connection.fileno():
                    os._exit(0)
                events.unregister(fd)
                os.close(fd)
                waiting -= 1
            for _ in range(waiting, 0 if found and waiting else _SPARES):
                # The spare's end is closed when it executes a task, or dies.
                ours, its = os.pipe()
                if fork_sibling() == 0:
                    self._take_one()
                os.close(its)
                events.register(ours, 0)
                waiting += 1

    def _take_one(self) -> NoReturn:
        """In a spare: wait for a task, and become it."""
        plan, status = self._plan, 125
        try:
            if plan.die_with_parent:
                die_with_parent()
                if os.getppid() != self._parent:
                    os._exit(status)  # it died before it could be asked for
            word, fds = self._wait()
            self._connection.send(b"%d" % os.getpid())
            _on_interrupt(self._interrupt)
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
            for lease in self._leases:
                with suppress(OSError):
                    os.utime(lease)  # used now
            execute((*plan.command[:-1], word), plan.env)
        except UdiError as error:
            os.write(2, f"{error}\n".encode(errors="replace"))
            status = error.exit_code
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
        finally:
            os._exit(status)

    def _wait(self) -> tuple[str, list[int]]:
        """The word and the streams of the next task that can be started."""
        while True:
            text, sent, flags, _ = self._connection.recvmsg(
                _LONGEST + 1, _socket.CMSG_SPACE(3 * _FD), _socket.MSG_CMSG_CLOEXEC
            )
            if not text:
                self._connection.send(b"-%d" % os.getpid())
                os._exit(0)
            fds = [fd for _, _, data in sent for fd in memoryview(data).cast("i")]
            try:
                if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC) or len(fds) != 3:
                    raise OSError("This was not understood")
                os.statvfs(self._image)  # asks a FUSE server, which may be dead
            except OSError as error:
                for fd in fds:
                    os.close(fd)
                self._connection.send(b"!" + str(error).encode(errors="replace"))
            else:
                return os.fsdecode(text[1:]), fds


def _on_interrupt(new: int) -> int:
    """signal(2) for SIGINT, by numbers: the module of that name knows only Python's handlers."""
    return _signal(_SIGINT, clib.UnsignedLong(new))
