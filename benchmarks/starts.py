"""Starting programs to measure them: one after the other, many at the same time, two at any time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from udi_core import _process

_PR_SET_CHILD_SUBREAPER = 36

#: Starts a program and returns its process id.
Start = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One start to its end: wall and CPU seconds, of the program and of all that it left to be waited for."""

    wall: float
    cpu: float


def adopt_orphans() -> None:
    """Become the parent of what runtimes leave behind (podman's monitor), so that its CPU time counts as theirs."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> set[int]:
    """Direct children of this process."""
    found = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found |= {int(each) for each in Path(f"/proc/self/task/{thread}/children").read_text().split()}
    return found


def settle(before: set[int], patience: float = 3.0) -> float:
    """Wait for children that were not there before; their CPU seconds.  One that stays longer is a server."""
    cpu, deadline = 0.0, time.monotonic() + patience
    while (new := children() - before) and time.monotonic() < deadline:
        for pid in new:
            with contextlib.suppress(ChildProcessError):
                ended, _, usage = os.wait4(pid, os.WNOHANG)
                if ended:
                    cpu += usage.ru_utime + usage.ru_stime
        time.sleep(0.002)
    return cpu


def program(argv: Sequence[str], env: Mapping[str, str], directory: str) -> Start:
    """Start a program with nothing on its standard input; its errors are kept in ``directory``.

    In a session of its own: enroot's helpers end when their process group is orphaned, which it is not as long as
    this process, their new parent, is in the same session (:func:`adopt_orphans`).
    """
    path = _process.find_tool(argv[0]) or argv[0]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, f"{directory}/errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666),
    ]
    return lambda: os.posix_spawn(path, argv, env, file_actions=actions, setsid=True)


def once(start: Start) -> Sample:
    """Start, and wait for the end."""
    before, began = children(), time.perf_counter()
    _, status, usage = os.wait4(start(), 0)
    wall = time.perf_counter() - began
    cpu = usage.ru_utime + usage.ru_stime + settle(before)
    if status:
        raise ChildProcessError(_process.describe_status(os.waitstatus_to_exitcode(status)))
    return Sample(wall=wall, cpu=cpu)


def at_once(start: Start, count: int) -> float:
    """Seconds from the first start to the last end of many at the same time."""
    before, began = children(), time.perf_counter()
    statuses = [os.waitpid(pid, 0)[1] for pid in [start() for _ in range(count)]]
    wall = time.perf_counter() - began
    settle(before)
    if any(statuses):
        raise ChildProcessError(f"{sum(map(bool, statuses))} of {count} at once failed")
    return wall


def in_a_row(start: Start, count: int = 200, width: int = 2, patience: float = 20.0) -> float:
    """Tasks per second where ``width`` run at any time.

    It ends after ``patience`` seconds, finished or not: a slow runtime shows its rate as well by a few.
    """
    before, began = children(), time.perf_counter()
    running: list[int] = []
    done = started = 0
    while started < count or running:
        while len(running) < width and started < count:
            running.append(start())
            started += 1
        # The older one ends first in almost all cases, and the other is waited for in its turn.
        if os.waitpid(running.pop(0), 0)[1]:
            raise ChildProcessError("a task in a row failed")
        done += 1
        if time.perf_counter() - began > patience:
            count = started
    rate = done / (time.perf_counter() - began)
    settle(before)
    return rate
