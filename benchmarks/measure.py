"""Measure a command with all its children: wall and CPU seconds, bytes written, peak memory of all together."""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from udi_core import _process


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run cost.

    Attributes:
        wall, cpu: seconds; ``cpu`` is user and system time of all processes.
        written: bytes of file pages made dirty (getrusage(2), ru_oublock).
        memory: peak of the summed proportional set sizes, in bytes, sampled twenty times a second.
    """

    wall: float
    cpu: float
    written: int
    memory: int


def measure(argv: Sequence[str]) -> Cost:
    """Run a command to its end; it must succeed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    program = _process.spawn(argv, stdout=_process.DEVNULL)
    peak = 0
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, sum(map(_proportional, _tree(program.pid))))

    sampler = threading.Thread(target=sample)
    sampler.start()
    status = program.wait()
    wall = time.monotonic() - start
    ended.set()
    sampler.join()
    if status:
        raise SystemExit(f"{' '.join(argv)} failed with status {status}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(
        wall=wall,
        cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        written=(after.ru_oublock - before.ru_oublock) * 512,
        memory=peak,
    )


def _tree(pid: int) -> Iterable[int]:
    yield pid
    children: list[str] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # a child belongs to the thread that started it
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                children += file.read().split()
    for child in children:
        yield from _tree(int(child))


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def median_ms(action: Callable[[], object], runs: int = 50, warm_up: int = 3) -> float:
    """Median duration of an action, in milliseconds."""
    for _ in range(warm_up):
        action()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def verdict(name: str, value: float, target: float, unit: str = "") -> bool:
    """Print a figure beside its target; whether it is reached."""
    reached = value <= target
    print(f"  {name:44} {value:9.2f}{unit:4} target <= {target:g}{unit}  {'reached' if reached else 'MISSED'}")
    return reached


def quiet_machine() -> str:
    """One line on the machine, for the head of a report."""
    return f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Linux {os.uname().release}"
