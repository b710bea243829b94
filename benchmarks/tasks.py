"""10,000 short Parsl tasks in three images over 16 nodes of a virtual Slurm: what is lost, mounted twice, or left.

``python -m benchmarks.tasks [TASKS]``.  The images differ in their Python (3.9, 3.11, 3.13), and each task says on
which node and in which Python it ran.  Mounts are counted from the run records of the nodes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.measure import need, quiet_machine, verdict
from tests.support import images, slurm, user
from udi_core import run

NODES, TASKS = 16, 10_000
_IMAGES = {"bullseye": 9, "base": 11, "trixie": 13}


def where(number: int) -> tuple[int, str, int]:
    """The task."""
    import os
    import sys

    return number, os.environ["SLURMD_NODENAME"], sys.version_info[1]


def main(tasks: int = TASKS) -> int:
    """Run and count; exit code 0 if the targets are met."""
    need(*slurm.TOOLS, "bwrap", "tar2sqfs", "apt-get", root=True)
    print(f"{tasks} tasks on {NODES} nodes in {len(_IMAGES)} images; {quiet_machine()}")
    references = [f"oci:{images.image(name).path}:latest" for name in _IMAGES]
    with tempfile.TemporaryDirectory(prefix="udi-tasks-", dir="/tmp") as scratch:
        top = Path(scratch)
        with slurm.virtual_slurm(top / "slurm", NODES, cpus=1) as cluster:
            node_dir = f"{cluster.local}/udi"
            programs = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # Parsl looks there for its own
            os.environ.update(HOME=scratch, UDI_STORE=f"{top}/store", SLURM_CONF=cluster.conf, PATH=programs)
            results, seconds = _workflow(tasks, references, node_dir, scratch)
            python = (sys.executable, "-m", "udi_core")
            env = {**cluster.env, "HOME": scratch, "UDI_STORE": f"{top}/store", "UDI_NODE_DIR": node_dir}
            records = {node: cluster.on_node(node, "cat", f"{node_dir}/record.jsonl") for node in cluster.nodes}
            run(["srun", f"--nodes={NODES}", *python, "node", "clean", "--all"], env=env, cwd="/")
            tables = {node: cluster.on_node(node, "cat", "/proc/self/mountinfo") for node in cluster.nodes}
    left = sum(text.count(f" {node_dir}/") for text in tables.values()) + len(user.processes_of(node_dir))
    return _report(tasks, results, seconds, records, left)


def _workflow(tasks: int, references: list[str], node_dir: str, scratch: str) -> tuple[list[Any], float]:
    """Results of all tasks, or their exceptions; seconds from the first task that was given away to the last result."""
    import parsl
    from parsl import python_app
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.launchers import SrunLauncher
    from parsl.providers import SlurmProvider
    from udi_parsl import WarmLauncher, image, prefetch

    prefetch(*references)
    provider = SlurmProvider(
        nodes_per_block=NODES,
        init_blocks=1,
        max_blocks=1,
        walltime="01:00:00",
        worker_init=f"export UDI_NODE_DIR={node_dir}",
        launcher=WarmLauncher(SrunLauncher(), *references),
        cmd_timeout=120,
    )
    executor = HighThroughputExecutor(max_workers_per_node=1, provider=provider)
    config = Config(executors=[executor], run_dir=f"{scratch}/runinfo", strategy="none", initialize_logging=False)
    with parsl.load(config):
        apps = [image(reference)(python_app(where)) for reference in references]
        start = time.monotonic()
        futures = [apps[number % len(apps)](number) for number in range(tasks)]
        results = [future.exception() or future.result() for future in futures]
        seconds = time.monotonic() - start
    return results, seconds


def _report(tasks: int, results: list[Any], seconds: float, records: dict[str, str], left: int) -> int:
    pythons = list(_IMAGES.values())
    right = [each for number, each in enumerate(results) if _is_right(each, number, pythons[number % len(pythons)])]
    mounts: Counter[tuple[str, str]] = Counter()
    for node, text in records.items():
        for line in map(json.loads, text.splitlines()):
            if line["by"] == "mount":
                mounts[node, line["image"]] += 1
    shares = Counter(node for _, node, _ in right)
    spread = f"{min(shares.values())} to {max(shares.values())} tasks a node"
    print(f"  {seconds:.0f} s with the start of all workers; {spread}")
    reached = [
        verdict("tasks lost, or in a wrong image", tasks - len(right), 0),
        verdict("nodes that worked", len(shares), NODES, at_least=True),
        verdict("pairs of node and image that were mounted", len(mounts), NODES * len(_IMAGES), at_least=True),
        verdict("mounts of one image on one node, most", max(mounts.values()), 1),
        verdict("mounts and processes left", left, 0),
    ]
    return 0 if all(reached) else 1


def _is_right(result: Any, number: int, python: int) -> bool:
    return isinstance(result, tuple) and result[0] == number and result[2] == python


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
