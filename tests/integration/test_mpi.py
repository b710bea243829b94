"""Ranks of one srun step in an image, on nodes of a real Slurm: PMI-2, the machine's MPICH or the image's own."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import images, oci
from tests.support import slurm as slurms
from tests.support.cluster import CONTRIB, Account, account, cluster
from tests.support.slurm import Slurm

LIBRARY = "/usr/lib/x86_64-linux-gnu/libmpich.so.12"
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.needs(*slurms.TOOLS, "bwrap", "squashfuse_ll", "setpriv", "mpirun.mpich", "apt-get"),
]

RANKS = """
import json, os
from mpi4py import MPI

world = MPI.COMM_WORLD
node = world.Split_type(MPI.COMM_TYPE_SHARED)
large = bytearray(4 << 20)
if world.rank % 2:
    world.Recv(large, source=world.rank - 1)
else:
    world.Send(b"x" * len(large), dest=world.rank + 1)
    large = b"x" * len(large)
seen = {
    "rank": world.rank,
    "size": world.size,
    "sum": world.allreduce(world.rank),
    "large": large.count(b"x"),
    "node": os.environ["SLURMD_NODENAME"],
    "together": node.size,
    "users": os.readlink("/proc/self/ns/user"),
    "usr": os.stat("/usr").st_dev,
}
everything = world.gather(seen)
if world.rank == 0:
    print(json.dumps(everything))
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with cluster(4) as running:
        yield running


@pytest.fixture(scope="module")
def libraries(slurm: Slurm) -> Path:
    """What a site puts aside for images, by contrib/mpi/gather."""
    directory = Path(slurm.conf).parent / "mpich"
    subprocess.run([CONTRIB / "mpi" / "gather", directory, LIBRARY], check=True)
    return directory


def _tree(directory: Path, place: str) -> Iterator[oci.Entry]:
    for path in sorted(directory.rglob("*")):
        name = f"{place}/{path.relative_to(directory)}"
        yield oci.directory(name) if path.is_dir() else oci.file(name, path.read_bytes(), 0o755)


def _check(somebody: Account, image: str, **env: str) -> None:
    # Four nodes are one machine here.  Root's ranks may share memory across them; those of a user are in a user
    # namespace on each node, as on a real cluster, where no rank would take another node's memory for its own's.
    nodes = somebody.slurm.nodes[: 1 if somebody.uid else 4]
    script = somebody.write("ranks.py", RANKS)
    count = 2 * len(nodes)
    options = ("--mpi=pmi2", f"--nodelist={','.join(nodes)}", f"-n{count}", "--ntasks-per-node=2")
    done = somebody.run("srun", *options, "udi", "run", image, "--", "python3", str(script), **env)
    ranks = json.loads(done.stdout.splitlines()[-1])
    assert [rank["rank"] for rank in ranks] == list(range(count))
    assert {(rank["size"], rank["sum"], rank["large"]) for rank in ranks} == {
        (count, count * (count - 1) // 2, 4 << 20)
    }
    assert Counter(rank["node"] for rank in ranks) == dict.fromkeys(nodes, 2)
    for node in nodes:
        here = [rank for rank in ranks if rank["node"] == node]
        assert {rank["together"] for rank in here} == {2}
        assert len({rank["users"] for rank in here}) == 1, "ranks of a node must be able to read each other's memory"
        assert len({rank["usr"] for rank in here}) == 1, "one mount for all ranks of a node"


@pytest.fixture(params=["root", "user"])
def somebody(slurm: Slurm, request: pytest.FixtureRequest) -> Iterator[Account]:
    """Root, whose images the kernel mounts, and an ordinary user, whose images a user namespace of the node shows."""
    who = request.getfixturevalue("ordinary_user") if request.param == "user" else None
    with account(slurm, who, **({"UDI_BACKENDS": "namespace"} if who else {})) as found:
        yield found


def test_an_image_gets_the_mpi_of_the_machine(
    somebody: Account, libraries: Path, push: Callable[..., str], tmp_path: Path
) -> None:
    layers = [images.python_layer("mpi4py", name="numeric")]
    image = push(images.derive(images.image("numeric"), tmp_path / "layout", layers), "test/mpi4py")
    site = somebody.write(
        "site.yaml",
        f"modules:\n  mpich:\n    volumes: ['{libraries}:/opt/udi/mpich:ro']\n"
        "    env: {LD_LIBRARY_PATH: /opt/udi/mpich, MPI4PY_MPIABI: mpich}\n",
    )
    program = somebody.directory / "udi"
    program.write_text(program.read_text().replace("UDI_SITE_CONFIG=/nonexistent", f"UDI_SITE_CONFIG={site}"))
    somebody.run("udi", "pull", "-q", image)
    _check(somebody, image, UDI_MODULES="mpich")


def test_an_image_brings_its_own_mpi(
    somebody: Account, libraries: Path, push: Callable[..., str], tmp_path: Path
) -> None:
    layers = [images.python_layer("mpi4py", name="numeric"), oci.Layer.of(*_tree(libraries, "opt/mpich"))]
    env = ["LD_LIBRARY_PATH=/opt/mpich", "MPI4PY_MPIABI=mpich"]
    image = push(images.derive(images.image("numeric"), tmp_path / "layout", layers, env=env), "test/mpich")
    somebody.run("udi", "pull", "-q", image)
    _check(somebody, image)
