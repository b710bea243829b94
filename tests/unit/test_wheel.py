"""What pip installs: every file of the packages, what sites want, and nothing else."""

from __future__ import annotations

import configparser
import importlib
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CLONE = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CLONE / "pyproject.toml").read_text())
TARGET = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    directory = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(argv, cwd=CLONE, check=True, capture_output=True, timeout=120)
    (path,) = directory.iterdir()
    with zipfile.ZipFile(path) as opened:
        yield opened


def files(top: str) -> dict[str, Path]:
    """The files of a directory of the clone, by their names relative to it."""
    found = (path for path in (CLONE / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(CLONE / top)): path for path in found}


def expected() -> dict[str, Path]:
    """Name in the wheel -> file of the clone."""
    data = f"{PROJECT['project']['name'].replace('-', '_')}-{PROJECT['project']['version']}.data"
    every = {f"{Path(top).name}/{name}": path for top in TARGET["packages"] for name, path in files(top).items()}
    for top, place in TARGET["shared-data"].items():
        every |= {f"{data}/data/{place}/{name}": path for name, path in files(top).items()}
    return every | {f"{data}/scripts/{name}": CLONE / script for script, name in TARGET["shared-scripts"].items()}


def test_it_has_the_files_of_the_packages_and_of_contrib(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == set(expected())
    assert {f"contrib/{path.name}" for path in (CLONE / "contrib").iterdir()} == set(TARGET["shared-data"])


def test_programs_stay_executable(wheel: zipfile.ZipFile) -> None:
    modes = {info.filename: info.external_attr >> 16 for info in wheel.infolist()}
    programs = [name for name, path in expected().items() if path.read_bytes()[:2] == b"#!"]
    assert any(name.endswith("bin/apptainer") for name in programs)
    assert [name for name in programs if not modes[name] & 0o100] == []


def test_the_command_is_started_by_the_python_that_it_is_installed_for(wheel: zipfile.ZipFile) -> None:
    (script,) = (name for name in wheel.namelist() if name.endswith(".data/scripts/udi"))
    assert wheel.read(script).startswith(b"#!python")  # pip writes the interpreter's path in its place


def test_entry_points_lead_somewhere(wheel: zipfile.ZipFile) -> None:
    parser = configparser.ConfigParser()
    (name,) = (each for each in wheel.namelist() if each.endswith(".dist-info/entry_points.txt"))
    parser.read_string(wheel.read(name).decode())
    places = [place for group in parser.sections() for place in parser[group].values()]
    assert len(places) >= 7
    for place in places:
        module, _, attribute = place.partition(":")
        found: Any = getattr(importlib.import_module(module), attribute)
        assert callable(found) or hasattr(found, "run")
