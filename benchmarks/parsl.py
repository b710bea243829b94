"""Parsl tasks in an image against bare HTEX, two workers, in one run; prints the ratios beside the targets.

``python -m benchmarks.parsl``.  Images are made from Debian packages (tests/support/images.py): one with this
Python's bytecode and numpy, one with another Python, which gets source.  Exit code 1 if a target is missed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import parsl
from parsl import bash_app, python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from udi_parsl import UDIHighThroughputExecutor, image, prefetch, worker
from udi_parsl.images import RESOLVER, Surroundings, Wish, task_image

from benchmarks.measure import median_ms, need, quiet_machine, verdict
from tests.support import images
from udi_core import pack, specify

TASKS = 500
BASH_TASKS = 200
ROUNDS = 7
LARGE = 256 << 20
LARGE_ROUNDS = 2


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


def compare(apps: dict[str, Callable[..., float]], rounds: int) -> dict[str, list[float]]:
    """Measurements of each, taken by turns in changing order: what else the machine does hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in apps}
    for number in range(rounds):
        for name in list(apps) if number % 2 else reversed(apps):
            found[name].append(apps[name]())
    return found


def ratio(found: dict[str, list[float]], above: str, below: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(found[above], found[below], strict=True))


def main() -> int:
    need("tar2sqfs", *images.TOOLS)
    # Parsl finds the programs of HTEX in PATH only.
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("UDI_STORE", f"{scratch}/store")
        os.chdir(scratch)
        same, other = _with_numpy(scratch), f"oci:{images.image('trixie').path}"
        prefetch(same, other)
        # Warm pages and mounts: what a first task costs above bare HTEX, once its image is on the node.
        _round_trip(same)
        _round_trip(other)
        python = {
            "bare": python_app(nothing),
            "same Python": image(same)(python_app(nothing)),
            "other Python": image(other)(python_app(nothing)),
        }
        bash = {"bare": bash_app(command), "same Python": image(same)(bash_app(command))}
        large = {"bare": python_app(nothing), "same Python": image(same)(python_app(nothing))}
        data = _array(LARGE)
        # One HTEX for both: bare apps and apps in images share its two workers.
        with workflow(executor(UDIHighThroughputExecutor), scratch):
            python["bare"](1).result()
            first = {name: seconds(app, 1) for name, app in python.items()}
            rates = compare({name: functools.partial(rate, app, TASKS, 1) for name, app in python.items()}, ROUNDS)
            bash_rates = compare({name: functools.partial(rate, app, BASH_TASKS) for name, app in bash.items()}, ROUNDS)
            times = compare({name: functools.partial(seconds, app, data) for name, app in large.items()}, LARGE_ROUNDS)
        round_trip = _round_trip(same)
    print(f"parsl, 2 workers, encrypted HTEX; {quiet_machine()}; medians of {ROUNDS} rounds by turns")
    for name, values in rates.items():
        print(
            f"  no-op python app, {name:14} {statistics.median(values):8.0f} tasks/s"
            f"   first task {first[name] * 1e3:6.0f} ms"
        )
    for name, values in bash_rates.items():
        print(f"  bash app,         {name:14} {statistics.median(values):8.0f} tasks/s")
    for name, values in times.items():
        print(f"  256 MiB array in and out, {name:12} {statistics.median(values):5.2f} s")
    reached = [
        verdict("bare / same Python, tasks/s", ratio(rates, "bare", "same Python"), 1 / 0.85),
        verdict("bare / other Python, tasks/s", ratio(rates, "bare", "other Python"), 1 / 0.80),
        verdict("bare / image, bash tasks/s", ratio(bash_rates, "bare", "same Python"), 1 / 0.85),
        verdict("round trip to a warm agent, p50", round_trip, 0.15, " ms"),
        verdict("first task of an image, above bare", (first["same Python"] - first["bare"]) * 1e3, 150, " ms"),
        verdict("256 MiB array, ratio to bare", ratio(times, "same Python", "bare"), 2),
    ]
    return 0 if all(reached) else 1


def _array(size: int) -> Any:
    import numpy

    return numpy.arange(size // 8, dtype=numpy.float64)


def _with_numpy(scratch: str) -> str:
    layer = images.python_layer(f"numpy=={version('numpy')}", name="numeric")
    return f"oci:{images.derive(images.image('numeric'), Path(scratch) / 'numeric', [layer]).path}"


def _round_trip(reference: str) -> float:
    wish = Wish.parse(reference)
    choices = RESOLVER.choices(wish).result()
    task = task_image(wish, Surroundings(), choices)
    specification, arguments = specify(nothing), [b"", *pack(((1,), {}))]
    with worker.agent(task, choices[0]) as agent:
        return median_ms(lambda: agent.call(specification, arguments, "/"), runs=2000, warm_up=100)


if __name__ == "__main__":
    sys.exit(main())
