"""A task that its starter outlives: run to its end beside a process that goes on serving it."""

from __future__ import annotations

import os
import signal
import sys

from udi_core.errors import UdiError
from udi_core.sandbox import Launch, execute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def attend(launch: Launch, began: float) -> int:
    """Run a task to its end and pass signals on to it; its status, negative for a signal.

    ``began`` is as for :func:`udi_core.sandbox.execute`.  Signal handlers stay changed: the caller ends by
    :func:`end_as`.
    """
    # Forked, not spawned: the child becomes the task itself, where bubblewrap would stand between it and signals.
    child = os.fork()
    if not child:
        _become(launch, began)
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end_as(status: int) -> int:
    """Have this process end as a task did, so that its parent sees the signal that ended it; else the exit status."""
    if status >= 0:
        return status
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status


def _become(launch: Launch, began: float) -> NoReturn:
    try:
        execute(launch, began)
    except UdiError as error:
        print(f"udi: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code if error.exit_code in (126, 127) else 125)
    finally:
        os._exit(125)
