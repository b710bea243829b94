"""Parsl on a real Slurm with the configurations of contrib: kinds of nodes, nodes that come, drain and die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import slurm as slurms
from tests.support.cluster import CONTRIB, Account, account, cluster, wait_until
from tests.support.slurm import Slurm

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.needs(*slurms.TOOLS, "bwrap", "squashfuse_ll", "fusermount3", "setpriv"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with cluster(4, hooks=True) as running:
        yield running


WORKFLOW = """
import collections, json, sys
import parsl
from parsl import python_app
from udi_parsl import image, prefetch
sys.path.insert(0, {contrib!r})
import cori, perlmutter, slurm

old, new = {old!r}, {new!r}


def where(number):
    import os, sys, time
    time.sleep({seconds})
    return number, os.environ["SLURMD_NODENAME"], sys.version_info[1], os.getpid()


if __name__ == "__main__":
    prefetch(old, new)
    by_kind = image({{"mic_knl": old, "haswell": new}})(python_app(where))
    always_old = image(old)(python_app(where))
    with parsl.load({config}):
        print("loaded", flush=True)
        futures = [app(number) for number in range({tasks}) for app in (by_kind, always_old)]
        results = [future.result() for future in futures]
    kinds, olds = results[::2], results[1::2]
    assert [each[0] for each in kinds] == [each[0] for each in olds] == list(range({tasks}))
    print(json.dumps({{"kinds": kinds, "olds": olds}}))
"""


def workflow(somebody: Account, old: str, new: str, config: str, *, tasks: int, seconds: float = 0) -> list[str]:
    """The argv of a Parsl script that runs in two images."""
    text = WORKFLOW.format(
        contrib=str(CONTRIB / "parsl"), old=old, new=new, config=config, tasks=tasks, seconds=seconds
    )
    return [sys.executable, str(somebody.write("workflow.py", text))]


@pytest.mark.parametrize(("who", "site"), [("user", "cori"), ("root", "perlmutter")])
def test_two_kinds_of_nodes(
    slurm: Slurm, bullseye_image: str, base_image: str, request: pytest.FixtureRequest, who: str, site: str
) -> None:
    user = request.getfixturevalue("ordinary_user") if who == "user" else None
    if user and user.python != sys.executable:
        pytest.skip("an ordinary user does not reach this interpreter; .ci/run tests a copy")
    more = "workers={'haswell': 2, 'knl': 2}" if site == "cori" else "workers=2, gpus=0"
    # Blocks of two nodes: all four of them are one allocation for each kind.
    config = f"{site}.config(images=[old, new], nodes_per_block=2, max_blocks=1, qos=None, {more})"
    with account(slurm, user) as somebody:
        done = somebody.run(*workflow(somebody, bullseye_image, base_image, config, tasks=40, seconds=0.1))
        results = json.loads(done.stdout.splitlines()[-1])
        # What ran on a Haswell is the new image (Python 3.11), and on a Knights Landing the old one (3.9).
        assert {(node[0], minor) for _, node, minor, _ in results["kinds"]} == {("h", 11), ("k", 9)}
        assert {minor for _, _, minor, _ in results["olds"]} == {9}
        for node in slurm.nodes:
            wait_until(lambda node=node: not somebody.left_on(node), lambda node=node: somebody.left_on(node))


def kill_node(slurm: Slurm, node: str) -> None:
    """End a node's slurmd and all that runs on the node, so that nobody can tell of it."""
    with open(f"/proc/{slurm.pid(node)}/ns/mnt") as held:  # or the next namespace on the machine may get its number
        namespace = os.fstat(held.fileno()).st_ino
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{pid}/ns/mnt").st_ino == namespace:
                    os.kill(int(pid), signal.SIGKILL)


def test_nodes_come_drain_and_die_and_the_workflow_ends(slurm: Slurm, bullseye_image: str) -> None:
    config = "slurm.config(images=[old], init_blocks=1, max_blocks=4, patience=20)"
    with account(slurm) as somebody:
        argv = workflow(somebody, bullseye_image, bullseye_image, config, tasks=20, seconds=1)
        with open(somebody.directory / "output", "w+") as output:
            process = subprocess.Popen(
                argv, env=dict(somebody.env), cwd=somebody.directory, stdout=output, stderr=output, text=True
            )

            def busy() -> list[str]:
                return sorted(somebody.run("squeue", "-h", "-t", "R", "-o", "%N").stdout.split())

            try:
                # Blocks come while there is work for them.
                wait_until(lambda: len(busy()) >= 2 or process.poll() is not None, "two blocks that run", 240)
                drained, died = busy()[:2]
                somebody.run("scontrol", "update", f"NodeName={drained}", "State=DRAIN", "Reason=test")
                kill_node(slurm, died)
                somebody.run("scontrol", "update", f"NodeName={died}", "State=DOWN", "Reason=test")
                assert process.wait(240) == 0, (somebody.directory / "output").read_text()
            finally:
                process.kill()
                process.wait()
            output.seek(0)
            results = json.loads(output.read().splitlines()[-1])
        assert len(results["kinds"]) == len(results["olds"]) == 20
