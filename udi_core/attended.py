"""A task that its starter outlives: run to its end beside a process that goes on serving it."""

from __future__ import annotations

import os
import sys

from udi_core.errors import UdiError
from udi_core.sandbox import Launch, execute
from udi_core.values import replace
from udi_core.waiter import wait_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def attend(launch: Launch, began: float) -> int:
    """Run a task to its end and pass signals on to it; its status, negative for a signal.

    ``began`` is as for :func:`udi_core.sandbox.execute`.  Signal handlers stay changed: the caller ends by
    :func:`udi_core.waiter.end_as`.
    """
    unrecorded = replace(launch, record=("", ""))
    return wait_for(launch.record, began, lambda: _become(unrecorded, began))


def _become(launch: Launch, began: float) -> NoReturn:
    try:
        execute(launch, began)
    except UdiError as error:
        print(f"udi: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code if error.exit_code in (126, 127) else 125)
    finally:
        os._exit(125)
