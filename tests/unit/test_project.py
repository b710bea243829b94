"""What is written in two places says the same: dependencies, links between documents."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

CLONE = Path(__file__).resolve().parents[2]
#: PyPI name -> conda name, where they differ.
_CONDA = {"isal": "python-isal"}
#: What only conda names: programs, and what an extra of a PyPI package brings (parsl[monitoring]).
_ONLY_CONDA = {"bubblewrap", "squashfs-tools", "squashfuse", "pip", "sqlalchemy"}


def documents() -> Iterator[Path]:
    for path in sorted(CLONE.rglob("*.md")):
        if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(CLONE).parts):
            yield path


def normal(requirement: str) -> str:
    """``Types_PyYAML >=6`` -> ``types-pyyaml``."""
    return re.split(r"[\s<>=!~\[;]", requirement.strip())[0].lower().replace("_", "-")


def oldest(requirement: str) -> str:
    """``parsl>=2025.1`` -> ``2025.1``; "" without a bound."""
    return requirement.replace(" ", "").partition(">=")[2]


def test_conda_environment_has_every_dependency_of_the_same_age() -> None:
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    wanted = {"python": project["requires-python"].removeprefix(">=")}
    for each in [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]:
        name = _CONDA.get(normal(each), normal(each))
        wanted[name] = oldest(each) or wanted.get(name, "")
    del wanted[normal(project["name"])]
    listed = yaml.safe_load((CLONE / "environment.yml").read_text())["dependencies"]
    found = {normal(each): oldest(each) for each in listed if isinstance(each, str)}
    assert {name: bound for name, bound in found.items() if name not in _ONLY_CONDA} == wanted


@pytest.mark.parametrize("path", list(documents()), ids=lambda path: str(path.relative_to(CLONE)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    local = [each for each in targets if "://" not in each and not each.startswith("mailto:")]
    assert [each for each in local if not (path.parent / each).exists()] == []


@pytest.mark.parametrize("path", list(documents()), ids=lambda path: str(path.relative_to(CLONE)))
def test_what_python_in_a_document_imports_is_there(path: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
        for module, names in re.findall(r"(?m)^from ((?:udi_|parsl)[\w.]*) import ([\w, ]+)$", block):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_every_page_of_the_manual_is_in_its_index() -> None:
    index = (CLONE / "docs" / "index.md").read_text()
    pages = {str(path.relative_to(CLONE / "docs")) for path in documents() if path.is_relative_to(CLONE / "docs")}
    assert {page for page in pages - {"index.md"} if f"({page})" not in index} == set()


def test_pages_that_the_sources_name_exist() -> None:
    named = set()
    for top in ("udi_core", "executors", "notebooks", "snakemake_plugin"):
        for path in (CLONE / top).rglob("*.py"):
            named |= set(re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()))
    assert {each for each in named if not (CLONE / each).exists()} == set()
