"""Ranks in an image on nodes of a real Slurm, started by srun, by Parsl's MPIExecutor and by Snakemake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import images, oci
from tests.support import slurm as slurms
from tests.support import user as users
from tests.support.cluster import CONTRIB, SHORT_JOBS, Account, account, cluster
from tests.support.slurm import Slurm

DEBIAN = Path("/usr/lib/x86_64-linux-gnu")
LIBRARY = DEBIAN / "libmpich.so.12"
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.needs(*slurms.TOOLS, "bwrap", "squashfuse_ll", "setpriv", "mpirun.mpich", "mpirun.openmpi", "apt-get"),
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
    "node": os.environ.get("SLURMD_NODENAME", os.uname().nodename),
    "together": node.size,
    "users": os.readlink("/proc/self/ns/user"),
    "usr": os.stat("/usr").st_dev,
    "mark": os.environ.get("MARK"),
    "asked": [os.environ.get("GIVEN", ""), os.environ.get("EXPORTED", ""), "/by/setup" in os.environ["PATH"]],
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


@pytest.fixture(scope="module")
def mpich(push: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with mpi4py and MPICH as pip installs them, which talks by libfabric."""
    wheels = images.cache_dir() / "mpich"
    if not wheels.exists():
        with tempfile.TemporaryDirectory(dir=images.cache_dir()) as made:
            words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={made}/mpich", "mpich"]
            subprocess.run([sys.executable, "-m", "pip", *words], check=True)
            os.rename(f"{made}/mpich", wheels)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        # What a wheel calls data goes below the prefix.
        names = {name.partition(".data/data/")[2]: name for name in wheel.namelist()}
        wanted = re.compile(r"lib/.*\.so.*|bin/(mpiexec|hydra_pmi_proxy)")
        files = [
            oci.file(f"usr/local/{to}", wheel.read(name), 0o755) for to, name in names.items() if wanted.fullmatch(to)
        ]
    more = oci.Layer.of(*files, oci.symlink("usr/bin/python", "python3"))
    layers = [images.python_layer("mpi4py", name="numeric"), more]
    env = ["LD_LIBRARY_PATH=/usr/local/lib", "MPI4PY_MPIABI=mpich", "MARK=in the image"]
    env += ["MPIR_CVAR_CH4_NETMOD=ofi", "FI_PROVIDER=tcp"]
    layout = tmp_path_factory.mktemp("mpich") / "layout"
    return push(images.derive(images.image("numeric"), layout, layers, env=env), "test/mpich")


@pytest.fixture(scope="module")
def openmpi(push: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with mpi4py and Debian's Open MPI: its plugins where it looks for them, and all libraries aside."""
    plugins = [
        *sorted((DEBIAN / "openmpi/lib/openmpi3").glob("*.so")),
        *sorted((DEBIAN / "pmix2/lib/pmix").glob("*.so")),
    ]
    texts = [path for top in ("/etc/openmpi", "/usr/share/openmpi") for path in sorted(Path(top).rglob("*"))]
    libraries = {"libmpi.so.40": DEBIAN / "libmpi.so.40"}
    needed = subprocess.run(["ldd", *plugins, *libraries.values()], capture_output=True, text=True, check=True).stdout
    for line in needed.splitlines():
        words = line.split()
        # The C library is the image's.
        if words[1:2] == ["=>"] and not re.match(r"lib(c|m|dl|pthread|rt|resolv)\.so|ld-linux", words[0]):
            libraries[words[0]] = Path(words[2])
    entries = [oci.file(f"opt/openmpi/{name}", path.read_bytes(), 0o755) for name, path in sorted(libraries.items())]
    entries += [oci.file(str(path)[1:], path.read_bytes(), 0o755) for path in (*plugins, *texts) if path.is_file()]
    entries += [
        oci.file(f"usr/bin/{name}", Path("/usr/bin", name).read_bytes(), 0o755) for name in ("orted", "orterun")
    ]
    layers = [images.python_layer("mpi4py", name="numeric"), oci.Layer.of(*entries)]
    env = ["LD_LIBRARY_PATH=/opt/openmpi", "MPI4PY_MPIABI=openmpi"]
    layout = tmp_path_factory.mktemp("openmpi") / "layout"
    return push(images.derive(images.image("numeric"), layout, layers, env=env), "test/openmpi")


def _tree(directory: Path, place: str) -> Iterator[oci.Entry]:
    for path in sorted(directory.rglob("*")):
        name = f"{place}/{path.relative_to(directory)}"
        yield oci.directory(name) if path.is_dir() else oci.file(name, path.read_bytes(), 0o755)


def _check(
    somebody: Account,
    image: str,
    nodes: Sequence[str],
    *,
    mpi: str = "pmi2",
    udi: str = "udi",
    together: bool = True,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Two ranks on each of these nodes, as ``srun`` starts them."""
    script = somebody.write("ranks.py", RANKS)
    count = 2 * len(nodes)
    options = (f"--mpi={mpi}", f"--nodelist={','.join(nodes)}", f"-n{count}", "--ntasks-per-node=2")
    done = somebody.run("srun", *options, udi, "run", image, "--", "python3", str(script), **env)
    _check_ranks(json.loads(done.stdout.splitlines()[-1]), nodes, together=together)
    return done


def _check_ranks(ranks: list[dict[str, Any]], nodes: Sequence[str], *, together: bool = True) -> None:
    """Two ranks on each of these nodes, which have talked with each other."""
    count = 2 * len(nodes)
    assert [rank["rank"] for rank in ranks] == list(range(count))
    assert {(rank["size"], rank["sum"], rank["large"]) for rank in ranks} == {
        (count, count * (count - 1) // 2, 4 << 20)
    }
    assert Counter(rank["node"] for rank in ranks) == dict.fromkeys(nodes, 2)
    for node in nodes:
        here = [rank for rank in ranks if rank["node"] == node]
        assert {rank["together"] for rank in here} == {2}
        # In one user namespace, ranks can read each other's memory.
        assert len({rank["users"] for rank in here}) == (1 if together else 2)
        assert len({rank["usr"] for rank in here}) == 1, "one mount for all ranks of a node"


@pytest.fixture(scope="module")
def root(slurm: Slurm) -> Iterator[Account]:
    """Root, whose images the kernel mounts."""
    with account(slurm) as found:
        yield found


@pytest.fixture(scope="module")
def user(slurm: Slurm) -> Iterator[Account]:
    """An ordinary user, whose images a user namespace of the node shows to all ranks there."""
    with users.for_tests() as who, account(slurm, who) as found:
        yield found


@pytest.fixture(params=["root", "user"])
def somebody(request: pytest.FixtureRequest) -> Account:
    found: Account = request.getfixturevalue(request.param)
    return found


def _with(somebody: Account, variable: str, path: Path) -> str:
    """A program that is ``udi`` with another value of one of the variables that the account's own has fixed."""
    text = (somebody.directory / "udi").read_text()
    return str(somebody.write(f"udi-{path.stem}", text.replace(f"{variable}=/nonexistent", f"{variable}={path}")))


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
    somebody.run("udi", "pull", "-q", image)
    udi = _with(somebody, "UDI_SITE_CONFIG", site)
    # Four nodes are one machine here: Debian's MPICH looks for its neighbours' memory, which a user's has not got.
    nodes = somebody.slurm.nodes[: 1 if somebody.uid else 4]
    _check(somebody, image, nodes, udi=udi, UDI_MODULES="mpich")


def test_an_image_brings_its_own_mpi(somebody: Account, mpich: str) -> None:
    somebody.run("udi", "pull", "-q", mpich)
    _check(somebody, mpich, somebody.slurm.nodes)


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_ranks_in_namespaces_of_their_own(user: Account, mpi: str, request: pytest.FixtureRequest) -> None:
    image = request.getfixturevalue(mpi)
    user.run("udi", "pull", "-q", image)
    launcher = {"mpich": "pmi2", "openmpi": "pmix"}[mpi]
    _check(user, image, user.slurm.nodes[:2], mpi=launcher, together=False, UDI_BACKENDS="fuse")


def test_open_mpi_by_pmix(somebody: Account, openmpi: str) -> None:
    somebody.run("udi", "pull", "-q", openmpi)
    # PMIx's server keeps files where no task looks, as below a site's /var/spool: here, with /tmp hidden.
    config = somebody.write("few.yaml", "automatic: [home, cwd]\n")
    done = _check(somebody, openmpi, somebody.slurm.nodes, mpi="pmix", udi=_with(somebody, "UDI_CONFIG", config))
    assert "PMIX ERROR" not in done.stderr


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_ranks_on_one_machine_by_its_mpirun(somebody: Account, mpi: str, request: pytest.FixtureRequest) -> None:
    image = request.getfixturevalue(mpi)
    script = somebody.write("ranks.py", RANKS)
    somebody.run("udi", "pull", "-q", image)
    options = ["--oversubscribe", "--allow-run-as-root"] if mpi == "openmpi" else []
    done = somebody.run(f"mpirun.{mpi}", *options, "-n", "2", "udi", "run", image, "--", "python3", str(script))
    _check_ranks(json.loads(done.stdout.splitlines()[-1]), [os.uname().nodename])


BATCH = """#!/bin/bash
#SBATCH --nodes=4 --ntasks-per-node=2
#UDI --image={image}
export OMPI_MCA_plm=^rsh
orterun -n 8 python3 ranks.py
"""


def test_mpirun_of_the_image_in_a_batch_script(user: Account, openmpi: str) -> None:
    """It calls the node's srun, as if the image had it, to start its daemons in the image on the other nodes."""
    user.write("ranks.py", RANKS)
    job = user.submit(user.write("mpirun.sh", BATCH.format(image=openmpi)), program=("udi", "sbatch"))
    assert user.status(job) == "0:0", user.output(job)
    ranks = next(json.loads(line) for line in user.output(job).splitlines() if line.startswith("[{"))
    _check_ranks(ranks, user.slurm.nodes)


PARSL = """
import json, sys
import parsl
from parsl import bash_app, python_app
from parsl.config import Config
from parsl.executors import MPIExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import SlurmProvider
from udi_parsl import image, prefetch

# The virtual nodes' names are no addresses.
OPTIONS = {"srun": "--mpi=pmi2", "mpiexec": "-iface lo"}


def command(exported, stdout=None, parsl_resource_specification=None):
    return f"export EXPORTED={exported}; $PARSL_MPI_PREFIX python3 ranks.py"


def function(parsl_resource_specification=None):
    import os, subprocess

    words = [*os.environ["PARSL_MPI_PREFIX"].split(), "python3", "ranks.py"]
    return subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.decode()


def executor(launcher):
    provider = SlurmProvider(nodes_per_block=2, max_blocks=1, launcher=SimpleLauncher(), cmd_timeout=60)
    return MPIExecutor(label=launcher, mpi_launcher=launcher, max_workers_per_block=1, provider=provider)


if __name__ == "__main__":
    prefetch(sys.argv[1])
    decorate = image(sys.argv[1], env={"GIVEN": "by the decorator"}, setup="export PATH=/by/setup:$PATH")
    with parsl.load(Config([executor(launcher) for launcher in OPTIONS])):
        called = []
        for launcher, options in OPTIONS.items():
            ranks = {"num_nodes": 2, "ranks_per_node": 2, "launcher_options": options}
            shell = decorate(bash_app(command, executors=[launcher]))
            python = decorate(python_app(function, executors=[launcher]))
            called.append(shell(launcher, stdout=f"{launcher}.out", parsl_resource_specification=ranks))
            called.append(python(parsl_resource_specification=ranks))
        results = [each.result() for each in called]
    assert results[::2] == [0, 0]
    print(json.dumps([open(f"{launcher}.out").read() for launcher in OPTIONS] + results[1::2]))
"""


def test_mpi_executor_starts_ranks_in_the_image_of_its_task(root: Account, mpich: str) -> None:
    """By the node's srun, and by the image's mpiexec, which calls that srun to reach the other nodes."""
    script = root.write("parsl_mpi.py", PARSL)
    root.write("ranks.py", RANKS)
    done = root.run(sys.executable, str(script), mpich)
    for text, exported in zip(json.loads(done.stdout.splitlines()[-1]), ("srun", "mpiexec", "", ""), strict=True):
        ranks = json.loads(text.splitlines()[-1])
        nodes = sorted({rank["node"] for rank in ranks})
        assert len(nodes) == 2
        _check_ranks(ranks, nodes)
        expected = ("in the image", ["by the decorator", exported, True])
        assert all((rank["mark"], rank["asked"]) == expected for rank in ranks)


SNAKEFILE = """
container: "{image}"

rule all:
    input: "shell.json", "script.json"
rule shell:
    output: "shell.json"
    resources: mpi="srun", tasks=4, nodes=2
    shell: "export EXPORTED=yes; {{resources.mpi}} --mpi=pmi2 -n {{resources.tasks}} python3 ranks.py > {{output}}"
rule script:
    output: "script.json"
    resources: mpi="srun", tasks=2, nodes=1
    script: "script.py"
"""
SCRIPT = """
import subprocess
words = [snakemake.resources.mpi, "--mpi=pmi2", f"-n{snakemake.resources.tasks}", "python3", "ranks.py"]
with open(snakemake.output[0], "wb") as output:
    subprocess.run(words, stdout=output, check=True)
"""


@pytest.mark.timeout(600)
def test_snakemake_starts_ranks_in_the_image_of_the_rule(root: Account, mpich: str) -> None:
    root.write("Snakefile", SNAKEFILE.format(image=mpich))
    root.write("script.py", SCRIPT)
    root.write("ranks.py", RANKS)
    root.snakemake(*SHORT_JOBS, timeout=500)
    for name, count in (("shell", 2), ("script", 1)):
        ranks = json.loads((root.directory / f"{name}.json").read_text())
        nodes = sorted({rank["node"] for rank in ranks})
        assert len(nodes) == count
        _check_ranks(ranks, nodes)
        assert {(rank["mark"], rank["asked"][1]) for rank in ranks} == {
            ("in the image", "yes" if name == "shell" else "")
        }
