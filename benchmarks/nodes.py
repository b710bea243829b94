"""Time to the first task on 1 to 64 cold nodes of a virtual Slurm, with bare Python beside it.

``python -m benchmarks.nodes``.  One ``srun`` starts a task on each of some nodes; on none of them is the image mounted
or known.  All nodes share the processors of this machine, so the wall time of 64 nodes cannot be less than their CPU
time spread over the processors: that limit of the machine's is shown beside it, and so is bare Python on the same
nodes.  The target is on what would be felt on a cluster: the CPU time that one node spends, with 64 against with 4.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import against, need, quiet_machine
from tests.support import images, slurm
from udi_core import run

COUNTS = (1, 4, 16, 64)
_RUNS = 3
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one ``srun`` took: seconds of wall time, and CPU seconds of the whole machine."""

    wall: float
    cpu: float


def main() -> int:
    """Measure and print; exit code 0 if the target is met."""
    need(*slurm.TOOLS, "bwrap", "tar2sqfs", "apt-get", root=True)
    print(f"time to the first task on cold nodes; {quiet_machine()}; medians of {_RUNS}")
    with tempfile.TemporaryDirectory(prefix="udi-nodes-", dir="/tmp") as scratch:
        top = Path(scratch)
        reference = f"oci:{images.image('base').path}:latest"
        udi = (sys.executable, "-m", "udi_core")
        with slurm.virtual_slurm(top / "slurm", max(COUNTS)) as cluster:
            env = {**cluster.env, "HOME": scratch, "UDI_STORE": f"{top}/store", "UDI_NODE_DIR": f"{cluster.local}/udi"}
            run([*udi, "pull", "--quiet", reference], env=env)

            def srun(nodes: int, *argv: str) -> None:
                run(["srun", f"--nodes={nodes}", "--ntasks-per-node=1", *argv], env=env, cwd="/")

            def clean(nodes: int) -> None:
                srun(nodes, *udi, "node", "clean", "--all")

            bare = (os.path.realpath(sys.executable), "-c", "pass")
            image = (*udi, "run", "--no-pull", reference, "--", "python3", "-c", "pass")
            found = {
                nodes: (
                    _steps(lambda nodes=nodes: srun(nodes, *bare)),
                    _steps(lambda nodes=nodes: srun(nodes, *image), after=lambda nodes=nodes: clean(nodes)),
                )
                for nodes in COUNTS
            }
    print("  nodes   bare Python: wall s  CPU s   in the image: wall s  CPU s  CPU s / processors   CPU s of each node")
    processors = os.cpu_count() or 1
    for nodes, (bare, inside) in found.items():
        print(
            f"  {nodes:5} {bare.wall:20.2f} {bare.cpu:6.2f} {inside.wall:22.2f} {inside.cpu:6.2f}"
            f" {inside.cpu / processors:19.2f} {inside.cpu / nodes:20.2f}"
        )
    few, many = (found[nodes][1].cpu / nodes for nodes in (4, max(COUNTS)))
    return 0 if against("CPU of a node, 64 nodes", many, few, 1.5, " s", peer="4 nodes") else 1


def _steps(action: Callable[[], None], after: Callable[[], None] = lambda: None) -> Step:
    """The medians of some runs."""
    found: list[Step] = []
    for _ in range(_RUNS):
        busy, start = _busy(), time.monotonic()
        action()
        found.append(Step(wall=time.monotonic() - start, cpu=_busy() - busy))
        after()
    return Step(wall=_median([each.wall for each in found]), cpu=_median([each.cpu for each in found]))


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _busy() -> float:
    """CPU seconds that this machine has worked since it started (proc(5): user, nice, system, irq, softirq)."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / _TICKS


if __name__ == "__main__":
    sys.exit(main())
