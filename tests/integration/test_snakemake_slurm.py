"""``container:`` rules that Snakemake's slurm executor sends to the nodes of a real Slurm."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import images, oci, workflows
from tests.support import slurm as slurms
from tests.support.cluster import SHORT_JOBS, Account, account, cluster
from tests.support.slurm import Slurm

pytest.importorskip("snakemake_executor_plugin_slurm")
pytestmark = [pytest.mark.root, pytest.mark.needs(*slurms.TOOLS, "bwrap", "squashfuse_ll", "fusermount3", "setpriv")]

SNAKEFILE = """
container: "{image}"

rule all:
    input: "end.txt", "haswell.txt", "knl.txt"
rule kinds:
    output: "{{kind}}.txt"
    container: "{levels}"
    resources: constraint=lambda wildcards: wildcards.kind
    shell: "echo $(cat /level) $SLURMD_NODENAME > {{output}}"
rule shell:
    output: "shell.txt"
    shell: "cat /opt/marker > {{output}}; echo $SLURMD_NODENAME $SLURM_JOB_ID >> {{output}}; test ! -e /usr/bin/srun"
rule script:
    input: "shell.txt"
    output: "script.txt"
    group: "together"
    script: "script.py"
rule end:
    input: "script.txt"
    output: "end.txt"
    group: "together"
    shell: "fit < {{input}} > {{output}}; echo $SLURM_JOB_ID >> {{output}}"
"""
SCRIPT = """
import os, platform
from pathlib import Path
text = [Path("/opt/marker").read_text().strip(), platform.python_version()]
text += [os.environ["SLURM_JOB_ID"], str(os.getuid())]
Path(snakemake.output[0]).write_text("\\n".join(text))
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    # The plugin asks squeue how a job has ended, so that Slurm must remember it for longer than between two questions.
    with cluster(2, "MinJobAge=300") as running:
        # Half of the nodes are too old for AVX2.
        kinds = Path(running.conf).with_name("task-prolog.sh")
        kinds.write_text(kinds.read_text().replace("mic_knl", "nehalem"))
        yield running


@pytest.fixture(scope="module")
def levels(push: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of x86-64 levels 1, 3 and 4."""
    layout = oci.Layout(tmp_path_factory.mktemp("levels") / "layout")
    base = images.image("tiny")
    blobs = [base.blob_path(each["digest"]).read_bytes() for each in base.read(base.find())["layers"]]
    below = [oci.Layer(data=gzip.decompress(blob)) for blob in blobs]
    bash = oci.file("bin/bash", '#!/bin/sh\nexec /bin/sh "$@"\n', 0o755)
    layout.add_index(
        [
            layout.add_image(
                [*below, oci.Layer.of(bash, oci.file("level", level or "v1"))],
                tag=None,
                platform=f"linux/amd64/{level}".rstrip("/"),
            )
            for level in ("", "v3", "v4")
        ]
    )
    return "docker://" + push(layout, "snakemake/levels").removeprefix("docker:")


@pytest.fixture(scope="module")
def image(push: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return workflows.push_workflow_image(push, tmp_path_factory.mktemp("image") / "layout", "snakemake/slurm", "trixie")


@pytest.fixture(params=["root", "user"])
def somebody(slurm: Slurm, request: pytest.FixtureRequest) -> Iterator[Account]:
    who = request.getfixturevalue("ordinary_user") if request.param == "user" else None
    if who and who.python != sys.executable:
        pytest.skip(f"no other account reaches {sys.executable}, in which Snakemake is")
    with account(slurm, who) as found:
        yield found


@pytest.mark.timeout(900)
def test_jobs_and_groups_run_in_the_image_on_the_nodes(somebody: Account, image: str, levels: str) -> None:
    somebody.write("Snakefile", SNAKEFILE.format(image=image, levels=levels))
    somebody.write("script.py", SCRIPT)
    said = somebody.snakemake(*SHORT_JOBS, timeout=800)

    def read(name: str) -> list[str]:
        return (somebody.directory / name).read_text().splitlines()

    marker, where = read("shell.txt")
    node, first = where.split()
    assert marker == "the image's file", said
    assert node in somebody.slurm.nodes
    marker, version, second, uid = read("script.txt")
    assert (marker, version.rpartition(".")[0], uid) == ("the image's file", "3.13", str(somebody.uid))
    # Both jobs of the group ran in one job of Slurm.
    assert read("end.txt") == ["fitted by the image:", second]
    assert first != second
    # One pointer names an image for each kind of node, and each node runs its own.
    assert [read(f"{kind}.txt") for kind in ("haswell", "knl")] == [["v3 h1"], ["v1 k1"]]
    # Pulled once, on the submit side, to where all nodes see it; every job read the same pointers.
    assert len(list(Path(somebody.store, "images").glob("*/*/*"))) == 4
    assert len(list((somebody.directory / ".snakemake" / "singularity").iterdir())) == 2
    somebody.run("udi", "lock")
    locked = json.loads((somebody.directory / "udi.lock").read_text())["images"][levels]
    assert sorted(locked["images"]) == ["linux/amd64", "linux/amd64/v3", "linux/amd64/v4"]
    assert locked["digest"] not in locked["images"].values()
