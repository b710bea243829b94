"""Real Jupyter kernels inside images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager
from udi_jupyter.kernelspec import KernelSettings, install, installed

from tests.support import images, kernels
from tests.support.kernels import evaluate, running

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "apt-get")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def kernel_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian's Python with ipykernel, which needs libstdc++ for ZeroMQ."""
    return kernels.kernel_image(tmp_path_factory.mktemp("image") / "layout")


@pytest.fixture
def environment(udi_env: dict[str, str], store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    env = {**udi_env, "UDI_STORE": store, "JUPYTER_DATA_DIR": str(tmp_path / "jupyter")}
    env |= {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "IPYTHONDIR": str(tmp_path / "ipython")}
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    return env


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def lent(cache: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where lent packages are kept: one directory for the module, since pip takes its time."""
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    return os.path.join(cache, "udi", "jupyter")


@pytest.fixture
def client(environment: Mapping[str, str], kernel_image: str) -> Iterator[Any]:
    install(KernelSettings(image=kernel_image, env={"FROM_SPEC": "yes"}), name="in-image")
    with running("in-image") as client:
        yield client


def test_a_cell_sees_the_image_and_the_working_directory(client: Any, tmp_path: Path) -> None:
    (tmp_path / "beside").write_text("here")
    code = "import os; print(open('/etc/os-release').read(), os.environ['FROM_SPEC'], open('beside').read())"
    seen = evaluate(client, code)
    assert "bookworm" in seen and seen.endswith("yes here\n")
    assert evaluate(client, "%cd /usr\nimport os; print(os.getcwd())").endswith("/usr\n")
    assert evaluate(client, "!cat /etc/debian_version").startswith("12")


def test_interrupt_restart_and_shutdown(client: Any) -> None:
    manager = client.manager
    assert kernels.interrupted(client) == "KeyboardInterrupt"
    evaluate(client, "kept = 1")
    manager.restart_kernel(now=False)
    client.wait_for_ready(timeout=kernels.PATIENCE)
    assert evaluate(client, "print('kept' in globals())") == "False\n"
    provisioner = manager.provisioner
    manager.shutdown_kernel()
    assert not provisioner.has_process


def test_ipykernel_is_lent_to_an_image_without_it(
    environment: dict[str, str], lent: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install(KernelSettings(image=f"oci:{images.image('numeric').path}:latest"), name="without")
    with running("without") as client:
        assert "Downloading ipykernel for Python 3.11" in capfd.readouterr().err
        code = "import sys, ipykernel, subprocess\nprint(ipykernel.__file__, sys.path.index('/.udi/jupyter'))\n"
        code += "print(subprocess.run([sys.executable, '-c', 'import ipykernel']).returncode)"
        place, *_, child = evaluate(client, code).split()
        assert place.startswith("/.udi/jupyter/") and child == "1", "programs of the notebook see the image's own"
        assert "Read-only" in evaluate(client, "!touch /.udi/jupyter/x")
    assert os.listdir(lent) == [f"cpython-311-glibc2.36-{os.uname().machine}"]


def test_an_image_that_cannot_run_a_lent_ipykernel_says_why(environment: Mapping[str, str], lent: str) -> None:
    install(KernelSettings(image=f"oci:{images.image('base').path}:latest"), name="bare")
    with pytest.raises(RuntimeError, match=r"has no ipykernel(.|\n)*libstdc\+\+(.|\n)*pip install ipykernel"):
        KernelManager(kernel_name="bare").start_kernel()
    install(KernelSettings(image=f"oci:{images.image('nopython').path}:latest"), name="no-python")
    with pytest.raises(RuntimeError, match="has no Python 3"):
        KernelManager(kernel_name="no-python").start_kernel()


def test_the_command_installs_lists_and_removes(environment: dict[str, str], kernel_image: str) -> None:
    def udi(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "udi_core", "kernel", *argv]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    done = udi("install", "--image", kernel_image, "--name", "mine", "--display-name", "Mine", "--env", "A=b")
    assert done.returncode == 0, done.stderr
    (kernel,) = installed()
    spec = json.loads(Path(kernel.directory, "kernel.json").read_text())
    assert spec["display_name"] == "Mine" and spec["interrupt_mode"] == "message"
    assert "mine" in udi("list").stdout
    assert udi("remove", "mine").returncode == 0
    assert not os.path.exists(kernel.directory)
    assert udi("remove", "mine").returncode == 2
    assert udi("install", "--image", kernel_image, "--name", "No Such Name").returncode == 2
    assert udi("remove").returncode == 2
