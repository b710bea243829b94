"""Waiting for a task: a child becomes it, and this process passes signals on and records how it ended.

Forked, not spawned: the child becomes the program itself, where bubblewrap would stand between it and signals.
"""

from __future__ import annotations

import os
import signal
import time

from udi_core import record
from udi_core.contexts import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_FROM_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT})


def wait_for(line: tuple[str, str], began: float, start: Callable[[], NoReturn]) -> int:
    """Run a task to its end; its exit status, negative for a signal.  Signal handlers stay changed: see :func:`end_as`.

    Args:
        line: file of the run record, and the beginning of the task's line.
        began: the time.time() at which this process began to work on it.
        start: becomes the task, in the child.
    """
    begun = time.time()
    # Until they can be passed on: one that came between would end this process, and nobody would end the task.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if not child:
        for number in _PASSED_ON:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        start()
    ended = False

    def pass_on(number: int, _: object) -> None:
        # A terminal tells all processes in front of it.
        if not ended and (number not in _FROM_TERMINAL or not _is_in_front()):
            os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # Its id is its own until the second call, and may be another process's after that.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    ended = True
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    record.write(
        *line,
        start=began,
        setup=begun - began,
        seconds=time.time() - begun,
        exit=code,
        cpu=used.ru_utime + used.ru_stime,
        rss=used.ru_maxrss * 1024,
    )
    return code


def end_as(status: int) -> int:
    """Have this process end as the task did, so that whoever waits for it sees the signal that ended it."""
    if status >= 0:
        return status
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status


def _is_in_front() -> bool:
    with suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False
