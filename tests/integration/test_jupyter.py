"""Real Jupyter kernels inside images, and the programs that start them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from jupyter_client.multikernelmanager import MultiKernelManager
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from udi_jupyter.kernelspec import KernelSettings, install, installed

from tests.support import images, kernels, lab, oci
from tests.support.environment import own_environment
from tests.support.kernels import PRETTY_NAME, evaluate, running
from udi_core import ImageStore, lease

CLONE = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", *images.TOOLS)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Kernels of this module share a store, and the packages that are lent; it is also this process's environment."""
    downloads = os.environ.get("PIP_CACHE_DIR") or os.path.expanduser("~/.cache/pip")
    with own_environment() as env, pytest.MonkeyPatch.context() as patch:
        home = Path(env["HOME"])
        env |= {"JUPYTER_DATA_DIR": str(home / "data"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
        env |= {"JUPYTER_CONFIG_DIR": str(home / "config"), "IPYTHONDIR": str(home / "ipython")}
        env |= {"PIP_CACHE_DIR": downloads, "XDG_CACHE_HOME": str(home / "cache")}
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for key, value in env.items():
            patch.setenv(key, value)
        (home / "work").mkdir()
        patch.chdir(home / "work")
        yield env


@pytest.fixture(scope="module")
def kernel_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return kernels.kernel_image(tmp_path_factory.mktemp("image") / "layout", "ipywidgets", "matplotlib")


@pytest.fixture(scope="module")
def in_image(environment: dict[str, str], kernel_image: str) -> str:
    """The name of a kernel in the image."""
    settings = KernelSettings(image=kernel_image, env={"FROM_SPEC": "yes"})
    return install(settings, name="in-image", display_name="Analysis 3").name


@pytest.fixture(scope="module")
def client(in_image: str) -> Iterator[Any]:
    """One kernel for all tests that leave it as it was."""
    with running(in_image) as client:
        yield client


def messages(client: Any, code: str, kind: str, **options: Any) -> list[dict[str, Any]]:
    """The contents of all messages of a kind that a cell publishes."""
    seen: list[dict[str, Any]] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == kind:
            seen.append(message["content"])

    reply = client.execute_interactive(code, output_hook=hook, timeout=kernels.PATIENCE, **options)
    assert reply["content"]["status"] == "ok", reply["content"]
    return seen


def test_a_cell_sees_the_image_and_the_working_directory(client: Any, environment: dict[str, str]) -> None:
    Path("beside").write_text("here")
    code = "import os; print(open('/etc/os-release').read(), os.environ['FROM_SPEC'], open('beside').read())"
    seen = evaluate(client, code)
    assert PRETTY_NAME in seen and seen.endswith("yes here\n")
    assert evaluate(client, "%cd /usr\nimport os; print(os.getcwd())").endswith("/usr\n")
    assert PRETTY_NAME in evaluate(client, "!cat /etc/os-release")
    evaluate(client, f"%cd {os.getcwd()}")


def test_a_plot_is_shown(client: Any) -> None:
    code = "%matplotlib inline\nimport matplotlib.pyplot as plot\nplot.plot([1, 4, 9]);"
    (shown,) = messages(client, code, "display_data")
    assert shown["data"]["image/png"].startswith("iVBOR")  # PNG, in base64


def test_input_is_asked_for(client: Any) -> None:
    def answer(message: dict[str, Any]) -> None:
        assert message["content"]["prompt"] == "Name? "
        client.input("Ada")

    assert evaluate(client, "print('Hello,', input('Name? '))", allow_stdin=True, stdin_hook=answer) == "Hello, Ada\n"


def test_a_widget_hears_from_the_browser(client: Any) -> None:
    code = "import ipywidgets\nslider = ipywidgets.IntSlider(3)\nslider"
    opened = messages(client, code, "comm_open")
    (model,) = [each["comm_id"] for each in opened if each["data"]["state"].get("_model_name") == "IntSliderModel"]
    update = {"method": "update", "state": {"value": 42}, "buffer_paths": []}
    client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": model, "data": update}))
    assert evaluate(client, "print(slider.value)") == "42\n"


def test_interrupt_restart_and_shutdown(in_image: str) -> None:
    with running(in_image) as client:
        manager = client.manager
        assert kernels.interrupted(client) == "KeyboardInterrupt"
        evaluate(client, "kept = 1")
        manager.restart_kernel(now=False)
        client.wait_for_ready(timeout=kernels.PATIENCE)
        assert evaluate(client, "print('kept' in globals())") == "False\n"
        provisioner = manager.provisioner
        manager.shutdown_kernel()
        assert not provisioner.has_process


def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end."""
    command = [sys.executable, "-m", *argv]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=kernels.PATIENCE)


def test_jupyter_console(in_image: str) -> None:
    code = "print(open('/etc/os-release').read())\nexit\n"
    done = run("jupyter_console", "--simple-prompt", "--kernel", in_image, stdin=code)
    assert PRETTY_NAME in done.stdout, done.stdout + done.stderr


def test_nbclient_and_papermill(in_image: str, tmp_path: Path) -> None:
    cells = [
        nbformat.v4.new_code_cell("path = '/etc/hostname'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(open(path).read())"),
    ]
    metadata = {"kernelspec": {"name": in_image, "display_name": "Analysis 3", "language": "python"}}
    source, result = tmp_path / "source.ipynb", tmp_path / "result.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), source)
    done = run("papermill", "--no-progress-bar", "-p", "path", "/etc/os-release", str(source), str(result))
    assert done.returncode == 0, done.stderr
    assert PRETTY_NAME in nbformat.read(result, 4).cells[-1].outputs[0].text
    done = run("jupyter", "execute", "--inplace", str(result))
    assert done.returncode == 0, done.stderr
    assert PRETTY_NAME in nbformat.read(result, 4).cells[-1].outputs[0].text


@pytest.mark.parametrize("missing", [False, True], ids=["in-image", "waiting-for-image"])
def test_a_kernel_ends_with_its_server(
    missing: bool, in_image: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))  # the connection file names the kernel's processes
    name = in_image
    with contextlib.ExitStack() as stack:
        if missing:
            image = kernels.kernel_image(tmp_path / "layout", env=["ONE_MORE=image"])
            name = install(KernelSettings(image=image), name="never-here").name
            stack.enter_context(_produced(tmp_path / "layout", environment))
        argv = [sys.executable, "-m", "tests.support.kernel_owner", name]
        owner = subprocess.Popen(argv, cwd=CLONE, stdout=subprocess.PIPE)
        assert owner.stdout and owner.stdout.readline() == b"started\n"
        connection = str(tmp_path / "kernel-")
        assert _with_argument(connection)
        owner.kill()
        owner.wait()
        lab.wait_for(lambda: not _with_argument(connection), "the kernel's processes have ended")


def _with_argument(text: str) -> list[str]:
    """Processes that have a text in their command line."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _produced(layout: Path, environment: dict[str, str]) -> lease.Lease:
    """Whoever wants this image waits: this process seems to make it."""
    store = ImageStore(environment["UDI_STORE"])
    store.prepare()
    producer = lease.acquire(store.lease_path(oci.Layout(layout).find()["digest"]))
    assert producer is not None
    return producer


def _implementation(manager: KernelManager) -> str:
    """Of the kernel that answers now."""
    client: Any = manager.client()
    client.start_channels(hb=False)
    try:
        return str(client.kernel_info(reply=True, timeout=5)["content"]["implementation"])
    except (queue.Empty, TimeoutError):
        return ""
    finally:
        client.stop_channels()


def test_a_server_shows_how_far_a_missing_image_is(environment: dict[str, str], tmp_path: Path) -> None:
    image = kernels.kernel_image(tmp_path / "layout", env=["ANOTHER=image"])
    install(KernelSettings(image=image), name="missing")
    producer = _produced(tmp_path / "layout", environment)
    server = MultiKernelManager()
    manager: Any = server.get_kernel(server.start_kernel(kernel_name="missing"))
    try:
        with kernels.connected(manager) as client:
            with producer:
                message, shown = client.execute("print('not yet')"), ""
                while "Waiting for" not in shown:
                    shown += client.get_iopub_msg(timeout=kernels.PATIENCE)["content"].get("text", "")
            assert f"pid {os.getpid()}" in shown
            while (reply := client.get_shell_msg(timeout=kernels.PATIENCE))["parent_header"].get("msg_id") != message:
                pass
            assert reply["content"]["ename"] == "ImageMissing" and "Run the cell again" in reply["content"]["evalue"]
        lab.wait_for(lambda: _implementation(manager) == "ipython", "the real kernel answers")
        with kernels.connected(manager) as client:
            assert PRETTY_NAME in evaluate(client, "print(open('/etc/os-release').read())")
    finally:
        server.shutdown_all(now=True)


def test_a_server_says_why_an_image_cannot_be_pulled(environment: dict[str, str]) -> None:
    install(KernelSettings(image="docker:127.0.0.1:1/none:1"), name="nowhere")
    server = MultiKernelManager()
    manager: Any = server.get_kernel(server.start_kernel(kernel_name="nowhere"))
    try:
        with kernels.connected(manager) as client:
            for _ in range(2):  # it stays, until somebody has read it
                content = client.execute("1", reply=True, timeout=kernels.PATIENCE)["content"]
                assert content["ename"] == "ImageMissing"
                said = content["evalue"].splitlines()
                assert said[0] == "The registry 127.0.0.1:1 cannot be reached"
                assert said[-1] == "Restart the kernel to try again."
    finally:
        server.shutdown_all(now=True)


@pytest.mark.needs("chromium", "chromedriver")
def test_jupyterlab_in_a_browser(in_image: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Pick the kernel, run a cell, see the image.  ``UDI_TEST_SCREENSHOT=PATH`` keeps a picture for the manual."""
    runtime = Path(environment["JUPYTER_RUNTIME_DIR"])
    (tmp_path / "files").mkdir()
    with lab.server(tmp_path / "files", runtime, tmp_path / "log") as address, lab.browser(tmp_path) as page:
        page.get(address)
        lab.element(page, ".jp-LauncherCard[title='Analysis 3']").click()
        lab.element(page, ".jp-Notebook-ExecutionIndicator[data-status='idle']")
        lab.element(page, ".jp-Notebook .cm-content").click()
        ActionChains(page).send_keys("!cat /etc/os-release").perform()

        def ran() -> bool:
            # JupyterLab forgets a cell that is run before it knows the kernel: run it until it has run.
            ActionChains(page).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
            return PRETTY_NAME in lab.element(page, ".jp-OutputArea-output pre", patience=15).text

        lab.wait_for(ran, "the image's name")
        if os.environ.get("UDI_TEST_SCREENSHOT"):
            page.save_screenshot(os.environ["UDI_TEST_SCREENSHOT"])


def test_ipykernel_is_lent_to_an_image_without_it(
    environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    install(KernelSettings(image=f"oci:{images.image('numeric').path}:latest"), name="without")
    with running("without") as client:
        assert "Downloading ipykernel for Python 3.11" in capfd.readouterr().err
        code = "import sys, ipykernel, subprocess\nprint(ipykernel.__file__, sys.path.index('/.udi/jupyter'))\n"
        code += "print(subprocess.run([sys.executable, '-c', 'import ipykernel']).returncode)"
        place, *_, child = evaluate(client, code).split()
        assert place.startswith("/.udi/jupyter/") and child == "1", "programs of the notebook see the image's own"
        assert "Read-only" in evaluate(client, "!touch /.udi/jupyter/x")
    lent = os.path.join(environment["XDG_CACHE_HOME"], "udi", "jupyter")
    assert os.listdir(lent) == [f"cpython-311-glibc2.36-{os.uname().machine}"]


def test_an_image_that_cannot_run_a_kernel_says_why(environment: dict[str, str]) -> None:
    install(KernelSettings(image=f"oci:{images.image('base').path}:latest"), name="bare")
    with pytest.raises(RuntimeError, match=r"has no ipykernel(.|\n)*libstdc\+\+(.|\n)*pip install ipykernel"):
        KernelManager(kernel_name="bare").start_kernel()
    install(KernelSettings(image=f"oci:{images.image('nopython').path}:latest"), name="no-python")
    with pytest.raises(RuntimeError, match="has no Python 3"):
        KernelManager(kernel_name="no-python").start_kernel()


def test_the_command_installs_lists_and_removes(environment: dict[str, str], kernel_image: str) -> None:
    def udi(*argv: str) -> subprocess.CompletedProcess[str]:
        return run("udi_core", "kernel", *argv)

    done = udi("install", "--image", kernel_image, "--name", "mine", "--display-name", "Mine", "--env", "A=b")
    assert done.returncode == 0, done.stderr
    (kernel,) = [each for each in installed() if each.name == "mine"]
    spec = json.loads(Path(kernel.directory, "kernel.json").read_text())
    assert spec["display_name"] == "Mine" and spec["interrupt_mode"] == "message"
    assert "mine" in udi("list").stdout
    assert udi("remove", "mine").returncode == 0
    assert not os.path.exists(kernel.directory)
    assert udi("remove", "mine").returncode == 2
    assert udi("install", "--image", kernel_image, "--name", "No Such Name").returncode == 2
    assert udi("remove").returncode == 2
