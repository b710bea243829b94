"""Measure a command with all its children: wall and CPU seconds, bytes written, peak memory of all together."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from udi_core import _process

#: Exit status of a benchmark that cannot run here, as automake's and meson's test runners have it.
NOT_RUN = 77
#: Variable that names the file to which figures of a run of several benchmarks are added, a line of JSON each.
RESULTS = "UDI_BENCH_RESULTS"


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


def verdict(
    name: str,
    value: float,
    target: float,
    unit: str = "",
    *,
    at_least: bool = False,
    peer: str = "",
    beside: float | None = None,
) -> bool:
    """Print a figure beside its target, and keep it for the table of all benchmarks; whether it is reached.

    Args:
        at_least: more is better.
        peer: what it is compared with; ``beside`` is the peer's figure, in the same unit.
    """
    reached = value >= target if at_least else value <= target
    sign = ">=" if at_least else "<="
    ratio = f"  {value / beside:.2f} of {peer}" if beside else ""
    mark = "reached" if reached else "MISSED"
    print(f"  {name:44} {value:9.2f}{unit:4} target {sign} {target:g}{unit}  {mark}{ratio}", flush=True)
    keep(
        what=name,
        value=value,
        unit=unit.strip(),
        target=f"{sign} {target:g}",
        reached=reached,
        peer=peer,
        beside=beside,
    )
    return reached


def against(
    name: str, value: float, beside: float, target: float, unit: str = "", *, peer: str, at_least: bool = False
) -> bool:
    """:func:`verdict` on a figure whose target is a share of the peer's."""
    ratio = value / beside
    reached = ratio >= target if at_least else ratio <= target
    sign = ">=" if at_least else "<="
    mark = "reached" if reached else "MISSED"
    figures = f"{value:9.2f}{unit:4} {peer} {beside:9.2f}{unit:4}"
    print(f"  {name:28} {figures} ratio {ratio:.2f}  target {sign} {target:g}  {mark}", flush=True)
    target_text = f"{sign} {target:g} x peer"
    keep(what=name, value=value, unit=unit.strip(), target=target_text, reached=reached, peer=peer, beside=beside)
    return reached


def keep(**figure: object) -> None:
    """Add a figure to the results of the run that this benchmark is a part of; nothing if it runs alone."""
    path = os.environ.get(RESULTS)
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(figure) + "\n")


def not_run(reason: str) -> NoReturn:
    """End a benchmark that cannot run on this machine, and say why; a target is neither reached nor missed."""
    print(f"  not run: {reason}")
    keep(not_run=reason)
    sys.exit(NOT_RUN)


def need(*programs: str, root: bool = False) -> None:
    """:func:`not_run` unless the programs are installed, and root runs this if it has to."""
    missing = [each for each in programs if _process.find_tool(each) is None]
    if missing:
        not_run(f"{', '.join(missing)} not installed")
    if root and os.getuid():
        not_run("needs root")


def quiet_machine() -> str:
    """One line on the machine, for the head of a report."""
    return f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Linux {os.uname().release}"
