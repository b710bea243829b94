"""A kernel in an image calls the node's programs: ``udi`` as anybody, and a real Slurm and Parsl as root."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager
from udi_jupyter.kernelspec import KernelSettings, install

from tests.support import images, slurm, tools

pytestmark = [
    pytest.mark.needs("bwrap", "tar2sqfs", "apt-get"),
    # The image has the Python of Debian 12, and sees ipykernel and Parsl where this machine has them.
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="needs Python 3.11, for which these packages are"),
]
PACKAGES = sysconfig.get_paths()["purelib"]

PARSL = """
import os, parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

python = "python3 -m parsl.executors.high_throughput."
workers = DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", python + "process_worker_pool")
config = Config(
    executors=[HighThroughputExecutor(
        address="127.0.0.1",
        max_workers_per_node=1,
        encrypted=False,
        launch_cmd=f"udi run -V {PACKAGES}:/opt/packages:ro -e PYTHONPATH=/opt/packages {IMAGE} -- {workers}",
        interchange_launch_cmd=(python + "interchange").split(),
        provider=SlurmProvider(
            worker_init=f"export UDI_NODE_DIR={LOCAL}/udi",
            nodes_per_block=2, exclusive=False, walltime="00:10:00", cmd_timeout=120,
            launcher=SrunLauncher(),
        ),
    )],
    strategy="none",
    initialize_logging=False,
)

@parsl.python_app
def where(number):
    import os, time
    time.sleep(1)
    return os.environ["SLURMD_NODENAME"], os.path.exists("/etc/debian_version"), os.environ["IMAGE_NAME"]

with parsl.load(config):
    seen = [future.result() for future in [where(number) for number in range(8)]]
print(sorted({node for node, *_ in seen}), {name for *_, name in seen})
"""


@pytest.fixture(scope="module")
def image() -> str:
    return f"oci:{images.image('numeric').path}:latest"


@contextlib.contextmanager
def kernel(environment: dict[str, str], image: str) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        shown = {"volumes": (f"{PACKAGES}:/opt/packages:ro",), "env": {"PYTHONPATH": "/opt/packages"}}
        install(KernelSettings(image=image, bridge=True, **shown), name="bridged")
        manager = KernelManager(kernel_name="bridged")
        manager.start_kernel()
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=120)
            yield client
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def evaluate(client: Any, code: str) -> str:
    """What a cell prints; an error raises."""
    printed: list[str] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])
        elif message["msg_type"] == "error":
            printed.extend(message["content"]["traceback"])

    reply = client.execute_interactive(code, output_hook=hook, timeout=240, stop_on_error=False)
    assert reply["content"]["status"] == "ok", "\n".join(printed)
    return "".join(printed)


@pytest.fixture
def environment(udi_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    places = {"JUPYTER_DATA_DIR": "jupyter", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    return {**udi_env, **{name: str(tmp_path / place) for name, place in places.items()}}


def test_a_kernel_in_an_image_uses_the_nodes_udi(environment: dict[str, str], image: str) -> None:
    with kernel(environment, image) as client:
        assert evaluate(client, "import os; print(os.environ['IMAGE_NAME'], os.path.exists('/.udi/host'))") == (
            "numeric True\n"
        )
        other = f"oci:{images.image('trixie').path}:latest"
        evaluate(client, f"!udi pull --quiet {other}")
        assert "trixie" in evaluate(client, f"!udi run {other} -- cat /etc/os-release")
        code = "import subprocess; print(subprocess.run(['udi', 'lookup', 'docker:none/such']).returncode)"
        assert evaluate(client, code) == "1\n"


@pytest.mark.root
@pytest.mark.needs(*slurm.TOOLS)
def test_slurm_and_parsl_from_a_kernel_in_an_image(environment: dict[str, str], image: str, tmp_path: Path) -> None:
    tools.need(slurm.TOOLS)
    with (
        slurm.virtual_slurm(tmp_path / "slurm", 2) as cluster,
        kernel({**environment, "SLURM_CONF": cluster.conf}, image) as client,
    ):
        assert evaluate(client, "!sinfo -h -o %D").split() == ["2"]
        code = "import subprocess; done = subprocess.run(['srun', '-N2', 'sh', '-c', 'hostname; exit 7'], "
        seen = evaluate(client, f"{code}capture_output=True, text=True); print(done.returncode, done.stdout)")
        assert sorted(seen.split()) == ["7", *sorted(cluster.nodes)]
        seen = evaluate(client, f"IMAGE, PACKAGES, LOCAL = {image!r}, {PACKAGES!r}, {cluster.local!r}\n{PARSL}")
        assert seen == f"{sorted(cluster.nodes)} {{'numeric'}}\n"
