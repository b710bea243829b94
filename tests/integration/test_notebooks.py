"""The example notebooks, from top to bottom; ``UDI_TEST_STORE_NOTEBOOKS=1`` also keeps their outputs in them.

They name images as people do (``docker:python:3.13-slim``); a mirror on this machine stands in for Docker Hub.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import images, slurm

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "apt-get")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
_STORE = os.environ.get("UDI_TEST_STORE_NOTEBOOKS") == "1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture
def environment(
    udi_env: dict[str, str], store: str, registry: Any, push: Callable[..., str], tmp_path: Path
) -> dict[str, str]:
    references = [
        push(images.image(name), "library/python", f"{version}-slim")
        for name, version in (("base", "3.11"), ("trixie", "3.13"))
    ]
    address = references[0].removeprefix("docker:").partition("/")[0]
    config = tmp_path / "udi.yaml"
    config.write_text(f"mirrors: {{docker.io: ['http://{address}']}}\n")
    (tmp_path / "work").mkdir()
    return {
        **udi_env,
        "UDI_STORE": store,
        "UDI_CONFIG": str(config),
        "UDI_PROGRESS": "plain",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"),
    }


@contextlib.contextmanager
def nodes(environment: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """Two nodes of a Slurm of the test's own where root can make one; else this machine."""
    if os.getuid() != 0:
        yield {**environment, "NODES": "1", "NODE_LOCAL": str(tmp_path)}
        return
    with slurm.virtual_slurm(tmp_path / "slurm", 2) as cluster:
        yield {
            **environment,
            "SLURM_CONF": cluster.conf,
            "NODES": "2",
            "NODE_LOCAL": cluster.local,
            "NODE_SETUP": f"export UDI_NODE_DIR={cluster.local}/udi",
        }


def run(name: str, environment: Mapping[str, str], tmp_path: Path) -> list[str]:
    """Execute a notebook; what each of its code cells showed, as text.  A cell that fails raises."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path / "work")}}
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources, record_timing=False)
    client.execute(env={**os.environ, **environment})
    if _STORE:
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")
    return [text(cell) for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: Any) -> str:
    shown = []
    for output in cell.outputs:
        shown.append(output["text"] if "text" in output else output["data"].get("text/plain", ""))
        shown += ["picture"] if "image/png" in output.get("data", {}) else []
    return "".join(shown)


def test_first_steps(environment: dict[str, str], tmp_path: Path) -> None:
    shown = "\n".join(run("first_steps", environment, tmp_path))
    assert "docker:python:3.13-slim" in shown and "Debian GNU/Linux 13 (trixie), Python 3.13" in shown
    assert "'written inside\\n'" in shown and "computed in Python 3.13" in shown
    assert "12.14 ± 0.32, from Python 3.13" in shown
    assert "refused, as it should be" in shown and "entered and left" in shown
    assert (tmp_path / "work" / "note.txt").exists()


@pytest.mark.needs(*slurm.TOOLS)
def test_sweep(environment: dict[str, str], tmp_path: Path) -> None:
    with nodes(environment, tmp_path) as prepared:
        shown = "\n".join(run("sweep", prepared, tmp_path))
    assert "python:3.11-slim Python 3.11" in shown and "python:3.13-slim Python 3.13" in shown
    assert "28 tasks; {'old': '3.11', 'new': '3.13'}" in shown
    assert "the releases agree" in shown and "picture" in shown


@pytest.mark.needs(*slurm.TOOLS)
def test_database(environment: dict[str, str], tmp_path: Path) -> None:
    with nodes(environment, tmp_path) as prepared:
        shown = "\n".join(run("database", prepared, tmp_path))
    assert "20000 calibrations" in shown and "32 readers, 3200 calibrations read" in shown
    assert "one copy on each node" in shown and "all as in the original: True" in shown
    assert list(tmp_path.glob("udi-example-*")) == []


def test_snakemake(environment: dict[str, str], tmp_path: Path) -> None:
    shown = run("snakemake", environment, tmp_path)
    whole = "\n".join(shown)
    assert "the images are here" in whole and "picture" in whole
    assert re.search(r"total\s+5", whole)
    rows = [["python", "3", "13"], ["a.count", "5"], ["b.count", "50"], ["c.count", "500"]]
    assert [line.split() for line in shown[5].strip().splitlines()] == rows
    assert "b.count\t52" in shown[7].replace("\r", "")
    assert "Nothing to be done" in shown[8]
