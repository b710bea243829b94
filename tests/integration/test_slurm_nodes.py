"""The life of a mount on a real Slurm's nodes: warm before the job, held while it lasts, gone when it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import slurm as slurms
from tests.support import user
from tests.support.cluster import Account, account, cluster, wait_until
from tests.support.slurm import Slurm

pytestmark = [pytest.mark.root, pytest.mark.needs(*slurms.TOOLS, "bwrap", "squashfuse_ll", "fusermount3", "setpriv")]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with cluster(2, hooks=True) as running:
        yield running


@pytest.fixture(params=["root", "user"])
def somebody(slurm: Slurm, request: pytest.FixtureRequest, tiny_image: str) -> Iterator[Account]:
    """Root, whose images the kernel mounts, and an ordinary user, whose images FUSE shows."""
    who = request.getfixturevalue("ordinary_user") if request.param == "user" else None
    with account(slurm, who) as found:
        found.run("udi", "pull", "-q", tiny_image)
        yield found


STATUS = """#!/bin/sh
srun sh -c 'udi node status --json > "$SLURMD_NODENAME.json"'
srun udi run IMAGE -- sh -c 'echo inside $SLURMD_NODENAME'
until [ -e end ]; do sleep 0.2; done
"""


def test_warm_before_the_job_and_gone_after_it(somebody: Account, tiny_image: str) -> None:
    first = somebody.submit(
        somebody.write("first.sh", STATUS.replace("IMAGE", tiny_image)),
        "-N2",
        "-n2",
        f"--comment=mine udi:{tiny_image}",
    )
    wait_until(lambda: somebody.output(first).count("inside") == 2, lambda: somebody.output(first))
    for node in somebody.slurm.nodes:
        (mount,) = json.loads((somebody.directory / f"{node}.json").read_text())
        assert mount["held_by"] == [first]
        assert mount["backend"] == ("fuse" if somebody.uid else "kernel")
    # A second job on one of the nodes: what the first leaves there is the second's.
    second = somebody.submit(
        somebody.write("second.sh", "#!/bin/sh\nudi node status --json\nexec sleep 600"),
        "-w",
        "h1",
        f"--comment=udi:{tiny_image}",
    )
    wait_until(lambda: somebody.output(second).strip().endswith("]"), lambda: somebody.output(second))
    (mount,) = json.loads(somebody.output(second))
    assert set(mount["held_by"]) == {first, second}
    somebody.write("end", "")
    wait_until(lambda: not somebody.left_on("k1"), lambda: somebody.left_on("k1"))
    assert any("root" in line for line in somebody.left_on("h1"))
    # Killed with -9, it leaves no more than one that ended well.
    somebody.run("scancel", "--signal=KILL", "--full", second)
    wait_until(lambda: not somebody.left_on("h1"), lambda: somebody.left_on("h1"))


BROADCAST = """#!/bin/sh -e
udi node warm --broadcast --no-pull {image}
mv {store}/images/sha256/*/*/image.squashfs {store}/away
srun -N2 -n2 udi run {image} -- sh -c 'echo inside $SLURMD_NODENAME'
srun -N2 -n2 sh -c 'echo copies $(ls {node_dir}/copies | wc -l)'
mv {store}/away $(echo {store}/images/sha256/*/*)/image.squashfs
"""


def test_nodes_read_a_copy_of_their_own(somebody: Account, tiny_image: str) -> None:
    text = BROADCAST.format(image=tiny_image, store=somebody.store, node_dir=somebody.node_dir)
    job = somebody.submit(somebody.write("broadcast.sh", text), "-N2")
    assert somebody.status(job) == "0:0", somebody.output(job)
    said = somebody.output(job)
    assert f"on 2 nodes  {tiny_image}\n" in said
    found = sorted(line for line in said.splitlines() if line.startswith(("copies", "inside")))
    assert found == ["copies 1", "copies 1", "inside h1", "inside k1"], said
    for node in somebody.slurm.nodes:
        wait_until(lambda node=node: not somebody.left_on(node), lambda node=node: somebody.left_on(node))
        assert ".part" not in somebody.slurm.on_node(node, "ls", somebody.slurm.local)
    done = somebody.run("udi", "node", "warm", "--broadcast", tiny_image, check=False)
    assert (done.returncode, "this is none" in done.stderr) == (2, True)


def test_a_job_that_names_no_image_or_a_missing_one_starts_all_the_same(somebody: Account) -> None:
    for comment in ("", "nothing of ours", "udi:docker:127.0.0.1:1/none:1"):
        done = somebody.run("srun", "-N1", "-n1", f"--comment={comment}", "echo", "started")
        assert done.stdout == "started\n"
    # The epilogs go on when srun has ended.
    wait_until(lambda: not user.processes_of(somebody.node_dir), lambda: user.processes_of(somebody.node_dir))
