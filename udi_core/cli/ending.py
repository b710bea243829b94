"""Ending a command by SIGTERM as by Ctrl-C: what it had begun is taken back first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class _Ended(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def orderly_end() -> Iterator[None]:
    """For the length of a block, SIGTERM and SIGHUP unwind it before they end the process.

    ``scancel``, ``timeout`` and supervisors send them to pulls that have made half of an image.  A signal that somebody
    handles or ignores already stays theirs, and a second one does not disturb the first one's work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def unwind(number: int, frame: object) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)
        raise _Ended(number)

    for number in ours:
        signal.signal(number, unwind)
    try:
        yield
    except _Ended as ended:
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)  # so that whoever waits for this process sees what ended it
        raise
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
