"""Snakemake's ``container:`` in a warm image, against the same rules without it and with a front that does nothing.

``python -m benchmarks.snakemake``, as root or as an ordinary user.  *UDI* is activated by the hook package, so that
jobs share a sandbox that stands; the *front alone*, found in PATH, builds one for each.  The *empty front* answers as
apptainer does and runs ``bash`` on the host: no program that is called as Snakemake calls one can cost less.

Snakemake solves a scheduling problem whenever a job has ended: jobs that end one by one cost it more than jobs that
end in pairs, and the shorter a job is the more often two have ended.  Exit code 1 if a target is missed.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measure import median_ms, need, quiet_machine, verdict
from tests.support import images, user, workflows
from tests.support.workflows import Workflow
from udi_core import _process

RULES = 200
#: Of short rules more, because how often two end together is a matter of luck.
ROUNDS = {"echo": 5, "sleep 0.1; echo": 3}
EMPTY_FRONT = """#!/bin/sh
case $1 in
--version) echo "apptainer version 1.4.5" ;;
pull) : >"$3" ;;
*) while [ "$1" != bash ]; do shift; done && exec "$@" ;;
esac
"""
SNAKEFILE = """
container: {image!r}
rule all:
    input: expand("{{number}}.txt", number=range({rules}))
rule each:
    output: "{{number}}.txt"
    shell: "{command} > {{output}}"
"""


def main() -> int:
    need("tar2sqfs", *images.TOOLS)
    directory = Path(tempfile.mkdtemp(prefix="udi-bench-"))
    try:
        with workflows.environment() as env:
            return _measure(directory, env)
    finally:
        user.clean_up(directory)


def _measure(directory: Path, env: dict[str, str]) -> int:
    reference = f"oci:{images.image('base').path}:latest"
    pointer = directory / "image.sif"
    done = workflows.front(env, ["pull", str(pointer), reference])
    if done.returncode:
        raise SystemExit(done.stderr)
    empty = directory / "empty"
    empty.mkdir()
    (empty / "apptainer").write_text(EMPTY_FRONT)
    (empty / "apptainer").chmod(0o755)
    without = workflows.make(directory / "without", env, arguments=())
    hook = workflows.make(directory / "udi", env)
    in_path = {
        "PATH": f"{workflows.front_directory()}:{without.env['PATH']}",
        "UDI_PYTHON": sys.executable,
        "UDI_SNAKEMAKE": "",
    }
    runs = {
        "without containers": without,
        "empty front": replace(
            workflows.make(directory / "empty-front", env),
            env={**without.env, "PATH": f"{empty}:{without.env['PATH']}", "UDI_SNAKEMAKE": "0"},
        ),
        "front alone": replace(workflows.make(directory / "front", env), env={**hook.env, **in_path}),
        "UDI": hook,
    }
    print(f"Snakemake, {quiet_machine()}; medians")
    reached = [_front(env, str(pointer), directory)]
    one = _costs(runs, str(pointer), rules=50, cores=1, command="echo")
    above = {name: (cost.wall - one["without containers"].wall) / 50 * 1000 for name, cost in one.items()}
    for name in ("empty front", "front alone"):
        print(f"  above the rule without a container: {name} {above[name]:.1f} ms")
    reached.append(verdict("above the rule without a container: UDI", above["UDI"], 40, " ms"))
    for command, rounds in ROUNDS.items():
        costs = _costs(runs, str(pointer), rules=RULES, cores=2, command=command)
        bare = costs["without containers"].wall
        print(f"  {RULES} rules with {command!r}, --cores 2, {rounds} times; seconds, and CPU seconds:")
        print("    " + ", ".join(f"{name} {cost.wall:.1f} ({cost.cpu:.1f})" for name, cost in costs.items()))
        for name in ("empty front", "front alone"):
            print(f"    {name + ' / without containers':42} {costs[name].wall / bare:9.2f}")
        reached.append(verdict("  UDI / without containers", costs["UDI"].wall / bare, 1.15))
    return 0 if all(reached) else 1


def _front(env: dict[str, str], pointer: str, directory: Path) -> bool:
    """The front by itself."""
    front = os.path.join(workflows.front_directory(), "apptainer")
    options = {"env": {**env, "UDI_PYTHON": sys.executable}, "cwd": str(directory), "stdout": _process.DEVNULL}

    def start(*argv: str) -> float:
        return median_ms(lambda: _process.spawn(argv, **options).wait())

    bash = start("bash", "-c", "true")
    inside = start(front, "exec", "--home", str(directory), pointer, "bash", "-c", "true")
    print(f"  bash -c true: bare {bash:.1f} ms, by exec in a warm image {inside:.1f} ms")
    return verdict("--version", start(front, "--version"), 10, " ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Wall and CPU seconds of one run of Snakemake, its jobs included."""

    wall: float
    cpu: float


def _costs(runs: dict[str, Workflow], image: str, *, rules: int, cores: int, command: str) -> dict[str, Cost]:
    """Medians of each run; the runs take turns, so that the machine's mood is the same for all."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(ROUNDS[command]):
        for name, run in runs.items():
            run.write(SNAKEFILE.format(image=image, rules=rules, command=command))
            for old in run.directory.glob("*.txt"):
                old.unlink()
            begin, before = time.monotonic(), _children()
            run.run("--cores", str(cores), "--quiet", "all", timeout=600)
            costs[name].append(Cost(wall=time.monotonic() - begin, cpu=_children() - before))
    return {name: sorted(each, key=lambda cost: cost.wall)[len(each) // 2] for name, each in costs.items()}


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
