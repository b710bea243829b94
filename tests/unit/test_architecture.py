"""The rules of the architecture hold, and breaking one is noticed."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
_SOURCES = ("udi_core", "executors", "notebooks", "snakemake_plugin", "pyproject.toml")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources, in which a violation can be planted."""
    for name in _SOURCES:
        if (CLONE / name).is_dir():
            shutil.copytree(CLONE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CLONE / name, tmp_path)
    return tmp_path


def check(copy: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the checkers of ``make lint`` on the copy; the copy's packages hide the installed ones."""
    packages = os.pathsep.join(str(copy / each) for each in (".", *_SOURCES[1:4]))
    return subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": packages, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def contracts(copy: Path) -> subprocess.CompletedProcess[str]:
    return check(copy, "lint-imports", "--no-cache", "--no-logo")


def test_contracts_are_kept(copy: Path) -> None:
    done = contracts(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        ("udi_core/errors.py", "import udi_core.store", "udi_core.errors -> udi_core.store"),
        ("udi_core/sandbox.py", "import udi_core.mount", "udi_core.sandbox -> udi_core.mount"),
        ("udi_core/pulling.py", "import udi_parsl", "udi_core.pulling -> udi_parsl"),
        ("executors/udi_parsl/planted.py", "from udi_core.store import ImageStore", "-> udi_core.store"),
        ("notebooks/udi_jupyter/planted.py", "import udi_parsl", "udi_jupyter.planted -> udi_parsl"),
    ],
)
def test_a_planted_import_breaks_a_contract(copy: Path, module: str, line: str, said: str) -> None:
    with (copy / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = contracts(copy)
    assert done.returncode == 1, done.stdout
    assert said in done.stdout.replace("\n", " ")


def test_subprocess_has_one_door(copy: Path) -> None:
    planted = copy / "udi_core" / "planted.py"
    planted.write_text('"""Planted."""\n\nimport subprocess\n\n__all__ = ["subprocess"]\n')
    done = check(copy, "ruff", "check", "--no-cache", "udi_core")
    assert done.returncode == 1
    assert "TID251" in done.stdout


@pytest.mark.parametrize("package", ["udi_core", "udi_parsl"])
def test_a_module_does_not_take_the_place_of_an_export(package: str) -> None:
    """Whoever imports a submodule puts it into the package, in the place of what has the same name there."""
    found = importlib.import_module(package)
    same = {each.name for each in pkgutil.iter_modules(found.__path__)} & set(found.__all__)
    assert [name for name in same if not callable(importlib.import_module(f"{package}.{name}"))] == []
