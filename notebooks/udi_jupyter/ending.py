"""The line of the run record that a kernel or a cell leaves when it has ended."""

from __future__ import annotations

import time

from udi_core import Launch, write_record


def record_end(launch: Launch, *, asked: float, began: float, status: int) -> None:
    """Append it; never raises.

    Args:
        asked: when the kernel or the cell was asked for, as time.time() tells it; ``began`` when its program began.
        status: its exit status, negative for a signal.
    """
    spent = time.time() - began
    write_record(*launch.record, start=asked, setup=began - asked, seconds=spent, exit=status)
