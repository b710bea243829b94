"""Parsl tasks in an image against bare HTEX, two workers, in one run; prints the ratios beside the targets.

``python -m benchmarks.parsl``.  Images are made from Debian packages (tests/support/images.py): one with this
Python's bytecode, one with another Python, which gets source.  Exit code 1 if a target is missed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import parsl
from parsl import bash_app, python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from udi_parsl import UDIHighThroughputExecutor, image, prefetch, worker
from udi_parsl.images import RESOLVER, Surroundings, Wish, task_image

from benchmarks.measure import median_ms, quiet_machine, verdict
from tests.support import images
from udi_core import pack, specify

TASKS = 2000
BASH_TASKS = 600
ROUNDS = 3
LARGE = 256 << 20


def nothing(value: Any) -> Any:
    return value


def command() -> str:
    return "true"


@contextlib.contextmanager
def workflow(executor: HighThroughputExecutor, directory: str) -> Iterator[None]:
    with parsl.load(Config(executors=[executor], run_dir=directory, strategy="none")):
        yield
    parsl.clear()


def executor(kind: type[HighThroughputExecutor] = HighThroughputExecutor) -> HighThroughputExecutor:
    repository = Path(__file__).parents[1]
    provider = LocalProvider(init_blocks=1, max_blocks=1, worker_init=f"export PYTHONPATH={repository}:$PYTHONPATH")
    return kind(label="htex", max_workers_per_node=2, provider=provider, encrypted=True)


def rate(app: Callable[..., Any], count: int, *arguments: Any) -> float:
    """Tasks per second, all submitted at once; after as many as warm the workers up."""
    for future in [app(*arguments) for _ in range(20)]:
        future.result()
    begin = time.monotonic()
    for future in [app(*arguments) for _ in range(count)]:
        future.result()
    return count / (time.monotonic() - begin)


def seconds(app: Callable[..., Any], *arguments: Any) -> float:
    begin = time.monotonic()
    app(*arguments).result()
    return time.monotonic() - begin


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("UDI_STORE", f"{scratch}/store")
        os.chdir(scratch)
        same, other = (f"oci:{images.image(name).path}" for name in ("base", "trixie"))
        prefetch(same, other)
        apps = {
            "bare": (python_app(nothing), bash_app(command)),
            "same Python": (image(same)(python_app(nothing)), image(same)(bash_app(command))),
            "other Python": (image(other)(python_app(nothing)), None),
        }
        python: dict[str, list[float]] = {name: [] for name in apps}
        bash: dict[str, list[float]] = {"bare": [], "same Python": []}
        first: dict[str, float] = {}
        large: dict[str, list[float]] = {"bare": [], "same Python": []}
        data = bytes(LARGE)
        # One HTEX for both: bare apps and apps in images share its two workers, so the machine's mood is the same.
        with workflow(executor(UDIHighThroughputExecutor), scratch):
            apps["bare"][0](1).result()
            first["bare"] = seconds(apps["bare"][0], 1)
            for name in ("same Python", "other Python"):
                first[name] = seconds(apps[name][0], 1)
            for _ in range(ROUNDS):
                for name, (python_task, bash_task) in apps.items():
                    python[name].append(rate(python_task, TASKS, 1))
                    if bash_task is not None:
                        bash[name].append(rate(bash_task, BASH_TASKS))
            for name in large:
                seconds(apps[name][0], data)
                large[name] = [seconds(apps[name][0], data) for _ in range(ROUNDS)]
        round_trip = _round_trip(same)

    def middle(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    print(f"parsl, 2 workers, encrypted HTEX; {quiet_machine()}; medians of {ROUNDS}")
    for name, values in python.items():
        print(f"  no-op python app, {name:14} {middle(values):8.0f} tasks/s   first task {first[name] * 1e3:6.0f} ms")
    for name, values in bash.items():
        print(f"  bash app,         {name:14} {middle(values):8.0f} tasks/s")
    for name, values in large.items():
        print(f"  256 MiB in and out, {name:12} {middle(values):8.2f} s")
    bare = middle(python["bare"])
    reached = [
        verdict("bare / same Python, tasks/s", bare / middle(python["same Python"]), 1 / 0.85),
        verdict("bare / other Python, tasks/s", bare / middle(python["other Python"]), 1 / 0.80),
        verdict("bare / image, bash tasks/s", middle(bash["bare"]) / middle(bash["same Python"]), 1 / 0.85),
        verdict("round trip to a warm agent, p50", round_trip, 0.15, " ms"),
        verdict("first task of an image, above bare", (first["same Python"] - first["bare"]) * 1e3, 150, " ms"),
        verdict("256 MiB, ratio to bare", middle(large["same Python"]) / middle(large["bare"]), 2),
    ]
    return 0 if all(reached) else 1


def _round_trip(reference: str) -> float:
    wish = Wish.parse(reference)
    choices = RESOLVER.choices(wish).result()
    task = task_image(wish, Surroundings(), choices)
    specification, arguments = specify(nothing), [b"", *pack(((1,), {}))]
    with worker.agent(task, choices[0]) as agent:
        return median_ms(lambda: agent.call(specification, arguments, "/"), runs=2000, warm_up=100)


if __name__ == "__main__":
    sys.exit(main())
