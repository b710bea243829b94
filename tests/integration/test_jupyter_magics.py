"""``%udi`` and ``%%udi`` in a real IPython and a real kernel: cells in images, and as tasks on nodes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

from tests.support import images, slurm, user

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "apt-get")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture
def environment(udi_env: dict[str, str], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    env = {**udi_env, "UDI_STORE": store, "IPYTHONDIR": str(tmp_path / "ipython"), "UDI_PROGRESS": "plain"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return env


@pytest.fixture
def shell(environment: dict[str, str]) -> Iterator[InteractiveShell]:
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "udi_jupyter")
    yield shell
    shell.run_line_magic("unload_ext", "udi_jupyter")
    InteractiveShell.clear_instance()


@pytest.fixture(scope="module")
def base() -> str:
    return f"oci:{images.image('base').path}:latest"


@pytest.fixture(scope="module")
def trixie() -> str:
    return f"oci:{images.image('trixie').path}:latest"


def test_a_shell_cell_runs_in_an_image(shell: InteractiveShell, base: str, capsys: Any, tmp_path: Path) -> None:
    shell.user_ns["seed"] = 7
    options = f"--in seed -e COLOR=red -V {tmp_path}:/data {base}"
    shell.run_cell_magic("udi", options, "echo $seed $COLOR $IMAGE_NAME; pwd; ls -d /data; echo oops >&2")
    out, err = capsys.readouterr()
    assert out == f"7 red base\n{tmp_path}\n/data\n"
    assert err.endswith("oops\n")
    shell.run_cell_magic("udi", f"--out text {base}", "echo kept")
    assert shell.user_ns["text"] == "kept\n" and "kept" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="ended with status 3"):
        shell.run_cell_magic("udi", base, "exit 3")
    lines = map(json.loads, Path(os.environ["UDI_NODE_DIR"], "record.jsonl").read_text().splitlines())
    recorded = [(each["program"], each["exit"], each["seconds"] > 0) for each in lines if each["by"] == "jupyter"]
    assert recorded == [("bash", 0, True), ("bash", 0, True), ("bash", 3, True)]


def test_a_python_cell_shares_variables(shell: InteractiveShell, trixie: str, capsys: Any) -> None:
    shell.user_ns["numbers"] = [1, 2, 3]
    shell.run_line_magic("udi", f"use -e A=b {trixie}")
    cell = "import os, sys\ntotal = sum(numbers)\nwhere = sys.version_info[:2], os.environ['A']\nprint('in', __name__)"
    shell.run_cell_magic("udi", "--python --in numbers --out total,where", cell)
    assert shell.user_ns["total"] == 6 and shell.user_ns["where"] == ((3, 13), "b")
    assert capsys.readouterr().out == f"Cells run in {trixie}\nin __main__\n"
    with pytest.raises(UsageError, match="ended with status 1"):
        shell.run_cell_magic("udi", "--python", "1 / 0")
    assert capsys.readouterr().err.splitlines()[:2] == [
        "Traceback (most recent call last):",
        '  File "cell", line 1, in <module>',
    ]
    with pytest.raises(UsageError, match="ended with status 1"):
        shell.run_cell_magic("udi", "--python --out nothing", "pass")
    assert "The cell has not set nothing, which --out names." in capsys.readouterr().err
    with pytest.raises(UsageError, match="cannot be read by the notebook's Python"):
        make = "import sys, types\nsys.modules['odd'] = module = types.ModuleType('odd')\n"
        shell.run_cell_magic(
            "udi", "--python --out thing", make + "exec('class C: pass', vars(module))\nthing = module.C()"
        )


def test_images_status_and_wrong_lines(shell: InteractiveShell, base: str, capsys: Any) -> None:
    shell.run_line_magic("udi", f"pull {base}")
    assert base in capsys.readouterr().out
    listed = shell.run_line_magic("udi", "images")
    assert any("3.11" in row for row in listed.rows) and "<table>" in listed._repr_html_() and "3.11" in repr(listed)
    shell.run_line_magic("udi", f"use {base}")
    assert ["image in use", base] in shell.run_line_magic("udi", "status").rows
    for magic, line, said in (
        ("line", "fly", "invalid choice"),
        ("line", "use docker:UPPER//", "UPPER"),
        ("line", "pull oci:/none/such", "none/such"),
        ("cell", "--in nothing", "no variable 'nothing'"),
        ("cell", "--out a,b", "one output"),
        ("cell", "--python --nodes 1 --out a,b", "one output"),
        ("cell", "--for x=range(3)", "needs nodes"),
        ("cell", "--nodes 1 --here --for x=1/0", "no values"),
        ("cell", "--in 1x", "not the name of a variable"),
        ("cell", "-e A", "not K=V"),
    ):
        with pytest.raises(UsageError, match=said):
            if magic == "line":
                shell.run_line_magic("udi", line)
            else:
                shell.run_cell_magic("udi", line, "true")
    capsys.readouterr()
    assert shell.run_line_magic("udi", "--help") is None
    assert "usage: %%udi [-h] [-p]" in capsys.readouterr().out


def test_an_interrupt_ends_the_cell(shell: InteractiveShell, base: str, tmp_path: Path, monkeypatch: Any) -> None:
    # Whoever started the tests may have left SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def interrupt() -> None:
        fifo.read_text()  # blocks until the cell runs
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            shell.run_cell_magic("udi", base, f"echo > {fifo}; exec sleep 1000")
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while user.processes_of(f"echo > {fifo}"):  # its parent has gone; the kernel ends it in a moment
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_cell_as_tasks_here(shell: InteractiveShell, base: str, trixie: str, capsys: Any) -> None:
    shell.user_ns["factor"] = 10
    line = f"--python --nodes 1 --workers 2 --for x=range(4) --in factor --out tasks {base}"
    shown = shell.run_cell_magic("udi", line, "y = x * factor\ny + 1")
    tasks = shell.user_ns["tasks"]
    assert tasks is shown and tasks.results() == [1, 11, 21, 31]
    assert "Tasks done: 4 of 4" in capsys.readouterr().out
    assert "x = 3" in tasks._repr_html_() and "done" in repr(tasks)
    # Other images, on the same nodes; the print of a cell whose last line is no expression.
    assert shell.run_cell_magic(
        "udi", f"--python --nodes 1 {trixie}", "import sys\nprint(sys.version_info[1]);a = 1"
    ).results() == ["13\n"]
    shell.run_cell_magic(
        "udi",
        f"--nodes 1 --background -w /etc --for \"word=['a', 'b']\" --out words {base}",
        "echo $word $PWD; test $word = a",
    )
    first, second = shell.user_ns["words"]
    assert first.result(timeout=120) == "a /etc\n"
    assert "status 1" in str(second.exception(timeout=120))
    html = shell.display_formatter.format(second)[0]["text/html"]
    assert "failed" in html and "shell_lines" in html
    assert ["tasks", "7 of 7 done"] in shell.run_line_magic("udi", "status").rows
    shell.run_line_magic("udi", "nodes 0")


def test_widgets_in_a_notebook_leave_text(environment: dict[str, str], base: str, tmp_path: Path) -> None:
    cells = [
        "%load_ext udi_jupyter",
        f"%%udi --nodes 1 --for x=range(3) {base}\necho $IMAGE_NAME $x",
        "%udi nodes 0",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    env = {**os.environ, **environment}
    del env["UDI_PROGRESS"]
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=env)
    outputs = notebook.cells[1].outputs
    texts = [output["data"]["text/plain"] for output in outputs if "data" in output]
    assert any("Tasks done: 3 of 3" in text for text in texts)
    assert "base 2" in texts[-1]


@pytest.mark.root
@pytest.mark.needs(*slurm.TOOLS)
def test_a_cell_on_nodes_of_slurm(
    shell: InteractiveShell, base: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    with slurm.virtual_slurm(tmp_path / "slurm", 2) as cluster:
        monkeypatch.setenv("SLURM_CONF", cluster.conf)
        setup = f"--setup 'export UDI_NODE_DIR={cluster.local}/udi'"
        line = f"--nodes 2 --workers 1 {setup} --for x=range(8) --out tasks {base}"
        shell.run_cell_magic("udi", line, "sleep 0.5; echo $SLURMD_NODENAME $IMAGE_NAME")
        assert {tuple(text.split()) for text in shell.user_ns["tasks"].results()} <= {
            (n, "base") for n in cluster.nodes
        }
        out = capsys.readouterr().out
        assert "of 2" in out and "Tasks done: 8 of 8" in out
        shell.run_line_magic("udi", "nodes 0")
        deadline = time.monotonic() + 120
        while cluster.run("squeue", "-h", "-t", "running,pending").stdout:  # scancel only asks
            assert time.monotonic() < deadline
            time.sleep(0.2)
