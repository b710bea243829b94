"""The Snakemake profiles of contrib, on a real Slurm with two kinds of nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support import slurm as slurms
from tests.support.cluster import CONTRIB, account, cluster
from tests.support.slurm import Slurm

pytest.importorskip("snakemake_executor_plugin_slurm")
pytestmark = [pytest.mark.root, pytest.mark.needs(*slurms.TOOLS, "bwrap", "squashfuse_ll", "fusermount3", "setpriv")]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with cluster(2) as running:
        yield running


SNAKEFILE = """
container: "{image}"

rule all:
    input: "plain.txt", "other.txt"
rule plain:
    output: "plain.txt"
    shell: "echo $SLURMD_NODENAME $(. /etc/os-release; echo $VERSION_CODENAME) > {{output}}"
rule other:
    output: "other.txt"
    resources: constraint="{constraint}"
    shell: "echo $SLURMD_NODENAME $(. /etc/os-release; echo $VERSION_CODENAME) > {{output}}"
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("who", "site", "constraint", "expected"),
    [
        ("user", "cori", "knl", {"plain": "h1", "other": "k1"}),
        ("root", "perlmutter", "gpu", {"other": "k1"}),
        ("root", "slurm", "knl", {"plain": "h1 k1", "other": "k1"}),
    ],
    ids=["cori", "perlmutter", "slurm"],
)
def test_rules_go_to_the_nodes_that_the_profile_means(
    slurm: Slurm,
    bullseye_image: str,
    request: pytest.FixtureRequest,
    who: str,
    site: str,
    constraint: str,
    expected: dict[str, str],
) -> None:
    user = request.getfixturevalue("ordinary_user") if who == "user" else None
    if user and user.python != sys.executable:
        pytest.skip(f"no other account reaches {sys.executable}, in which Snakemake is")
    with account(slurm, user) as somebody:
        image = bullseye_image.replace("docker:", "docker://")
        somebody.write("Snakefile", SNAKEFILE.format(image=image, constraint=constraint))
        somebody.snakemake(
            *("--profile", str(CONTRIB / "snakemake" / site), "--slurm-init-seconds-before-status-checks", "12"),
            *(f"{name}.txt" for name in expected),
            timeout=800,
        )
        for name, nodes in expected.items():
            node, system = (somebody.directory / f"{name}.txt").read_text().split()
            assert node in nodes.split()
            assert system == "bullseye"
