"""Batch scripts that run in an image, on a real Slurm of Haswell and Knights Landing nodes."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import images, oci
from tests.support import slurm as slurms
from tests.support.cluster import Account, account, cluster, wait_until
from tests.support.slurm import Slurm
from tests.support.user import OrdinaryUser

pytestmark = [pytest.mark.root, pytest.mark.needs(*slurms.TOOLS, "bwrap", "squashfuse_ll", "fusermount3", "setpriv")]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with cluster(2, hooks=True) as running:
        yield running


@pytest.fixture(params=["root", "user"])
def somebody(slurm: Slurm, request: pytest.FixtureRequest) -> Iterator[Account]:
    who = request.getfixturevalue("ordinary_user") if request.param == "user" else None
    with account(slurm, who) as found:
        yield found


@pytest.fixture(scope="module")
def mixed(push: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """References: ``knl`` is an image; ``levels`` an index of x86-64 levels 1, 3 and 4."""
    top = tmp_path_factory.mktemp("mixed")
    found = {}
    marked = {name: [oci.Layer.of(oci.file("marker", name))] for name in ("knl", "v1", "v3", "v4")}
    found["knl"] = push(images.derive(images.image("tiny"), top / "knl", marked["knl"]), "batch/knl")
    layout = oci.Layout(top / "levels")
    base = images.image("tiny")
    manifest = base.read(base.find())
    blobs = [base.blob_path(each["digest"]).read_bytes() for each in manifest["layers"]]
    below = [oci.Layer(data=gzip.decompress(blob)) for blob in blobs]
    made = [
        layout.add_image([*below, *marked[name]], tag=None, platform=f"linux/amd64/{name}".removesuffix("/v1"))
        for name in ("v1", "v3", "v4")
    ]
    layout.add_index(made)
    found["levels"] = push(layout, "batch/levels")
    return found


SCRIPT = """#!/bin/sh -e
#SBATCH --nodes=1 --open-mode=append
#UDI --image=mic_knl={knl}
#UDI --image={levels}
#UDI --volume={data}:/data --env=COLOUR=blue
echo image=$(cat /marker) argument="$1" colour=$COLOUR job=$SLURM_JOB_NAME host=$SLURMD_NODENAME
cat /data/input
id -u
exit 7
"""


def test_a_script_runs_in_the_image_of_its_node(somebody: Account, mixed: dict[str, str]) -> None:
    data = somebody.directory / "data"
    data.mkdir()
    (data / "input").write_text("the input\n")
    script = somebody.write("fit.sh", SCRIPT.format(**mixed, data=data))
    instead = f"--image={mixed['knl']}"
    for node, marker, *options in (("h1", "v3"), ("k1", "knl"), ("h1", "knl", instead)):
        job = somebody.submit(script, "-w", node, *options, program=("udi", "sbatch"), arguments=["an argument"])
        assert somebody.status(job) == "7:0", somebody.output(job)
        said, *rest = somebody.output(job).splitlines()
        assert said == f"image={marker} argument=an argument colour=blue job=fit.sh host={node}"
        assert rest == ["the input", str(somebody.uid)]
    # Warm already when the script starts: the prolog found the images in the comment that udi sbatch wrote.
    job = somebody.submit(somebody.write("status.sh", STATUS.format(**mixed)), "-w", "k1", program=("udi", "sbatch"))
    comment = somebody.run("scontrol", "show", "job", job).stdout
    assert "Comment=udi:" in comment and "mic_knl=id:" in comment and "v4=id:" in comment
    wait_until(lambda: "marker=" in somebody.output(job), lambda: somebody.output(job))
    mounts = json.loads(somebody.slurm.on_node("k1", "sh", "-c", f"cat {somebody.node_dir}/mounts/*/*/state.json"))
    assert "batch/knl" in mounts["reference"]
    assert [line for line in somebody.left_on("k1") if "/sleep" in line], "held for the job"
    somebody.write("end", "")
    wait_until(lambda: not somebody.left_on("k1"), lambda: somebody.left_on("k1"))


STATUS = """#!/usr/bin/env -S udi batch
#UDI --image=mic_knl={knl} --image=default={levels}
echo marker=$(cat /marker)
until [ -e end ]; do sleep 0.2; done
"""


def test_plain_sbatch_does_as_well(somebody: Account, mixed: dict[str, str]) -> None:
    script = somebody.write("plain.sh", STATUS.format(**mixed).replace("until", "echo $1; exit; until"))
    job = somebody.submit(script, "-w", "h1", arguments=["argument"])
    assert somebody.status(job) == "0:0"
    assert somebody.output(job) == "marker=v3\nargument\n"


STEPS = """#!/bin/bash
#SBATCH --nodes=2 --ntasks=2
#UDI --image={image} --env=COLOUR=blue
set -e
export SIZE=large
srun -N 2 -n2 --overlap python3 -c '
import os, sys
print("rank", *(os.environ[name] for name in ("SLURM_PROCID", "SLURMD_NODENAME", "COLOUR", "SIZE")), sys.version[:3])
'
srun -N1 -n1 --overlap udi --version
squeue --noheader --job=$SLURM_JOB_ID --format=name=%j
trap 'echo was told; kill $!; exit 3' USR1
echo ready
sleep 600 &
wait
"""


def test_steps_of_the_script_are_in_the_image_too(somebody: Account, bullseye_image: str) -> None:
    script = somebody.write("steps.sh", STEPS.format(image=bullseye_image))
    job = somebody.submit(script, program=("udi", "sbatch"))
    wait_until(lambda: "ready" in somebody.output(job), lambda: somebody.output(job))
    said = somebody.output(job).splitlines()
    assert sorted(said[:2]) == ["rank 0 h1 blue large 3.9", "rank 1 k1 blue large 3.9"]
    assert said[2].startswith("udi ") and said[3:] == ["name=steps.sh", "ready"]
    somebody.run("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "was told" in somebody.output(job), lambda: somebody.output(job))
    assert somebody.status(job) == "3:0"
    # Killed with -9, it leaves no more than one that ended well: not the socket of its calls either.
    job = somebody.submit(somebody.write("killed.sh", script.read_text()), program=("udi", "sbatch"))
    wait_until(lambda: "ready" in somebody.output(job), lambda: somebody.output(job))
    assert "tmp" in somebody.left_on("h1")
    somebody.run("scancel", "--signal=KILL", "--full", job)
    for node in somebody.slurm.nodes:
        wait_until(lambda node=node: not somebody.left_on(node), lambda node=node: somebody.left_on(node))


def test_a_job_that_waits_keeps_its_image(
    slurm: Slurm, ordinary_user: OrdinaryUser, push: Callable[..., str], tmp_path: Path
) -> None:
    def push_marked(name: str) -> str:
        layer = oci.Layer.of(oci.file("marker", name))
        return push(images.derive(images.image("tiny"), tmp_path / name, [layer]), "batch/moves")

    with account(slurm, ordinary_user) as somebody:
        reference = push_marked("first")
        script = somebody.write("waits.sh", f"#!/bin/sh\n#UDI --image={reference}\ncat /marker\n")
        job = somebody.submit(script, "--hold", program=("udi", "sbatch"))
        push_marked("second")
        somebody.run("udi", "pull", "-q", reference)
        assert "removed 0 images" in somebody.run("udi", "gc", "--grace=0").stdout
        (mark,) = (somebody.store / "uses").glob("sha256/*/*")
        assert mark.name == f"job.virtual.{job}.{somebody.uid}"
        refused = somebody.run("udi", "rm", f"id:{mark.parent.name}", check=False)
        assert (refused.returncode, f"wanted by: {mark.name}" in refused.stderr) == (73, True), refused.stderr
        # Removed by other means, it is pulled again when the job starts.
        shutil.rmtree(somebody.store / "images" / "sha256" / mark.parent.name[:2] / mark.parent.name)
        somebody.run("scontrol", "release", job)
        assert somebody.status(job) == "0:0", somebody.output(job)
        said = (
            f"udi: {reference.removeprefix('docker:')} was removed since the job was submitted, and is pulled again\n"
        )
        assert somebody.output(job) == f"{said}first"
        for node in slurm.nodes:
            wait_until(lambda node=node: not somebody.left_on(node), lambda node=node: somebody.left_on(node))
        somebody.run("udi", "gc", "--grace=0")
        assert not mark.exists()


def test_what_is_wrong_is_said_when_submitting(somebody: Account) -> None:
    for text, status, said in (
        ("#!/bin/sh\necho\n", 2, "names no image"),
        ("#!/bin/sh\n#UDI --image=hasswell=a/b\n", 2, "'hasswell' is not a kind of node"),
        ("#!/bin/sh\n#UDI --image=a/b --colour=blue\n", 2, "--colour=blue"),
        ("#!/bin/sh\n#UDI --image=docker:127.0.0.1:1/none:1\n", 69, "127.0.0.1:1"),
    ):
        done = somebody.run("udi", "sbatch", "-N1", str(somebody.write("wrong.sh", text)), check=False)
        assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert somebody.run("squeue", "-h", "--name=wrong.sh").stdout == ""
