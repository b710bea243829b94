"""What is written in two places says the same: dependencies, links between documents."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

CLONE = Path(__file__).resolve().parents[2]
#: PyPI name -> conda name, where they differ.
_CONDA = {"isal": "python-isal"}


def documents() -> Iterator[Path]:
    for path in sorted(CLONE.rglob("*.md")):
        if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(CLONE).parts):
            yield path


def normal(requirement: str) -> str:
    """``Types_PyYAML >=6`` -> ``types-pyyaml``."""
    return re.split(r"[\s<>=!~\[;]", requirement.strip())[0].lower().replace("_", "-")


def test_conda_environment_has_every_dependency() -> None:
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    wanted = {normal(each) for each in project["dependencies"]}
    for extra in project["optional-dependencies"].values():
        wanted |= {normal(each) for each in extra}
    wanted.discard(normal(project["name"]))
    listed = yaml.safe_load((CLONE / "environment.yml").read_text())["dependencies"]
    found = {normal(each) for each in listed if isinstance(each, str)}
    assert {_CONDA.get(each, each) for each in wanted} <= found


@pytest.mark.parametrize("path", list(documents()), ids=lambda path: str(path.relative_to(CLONE)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    local = [each for each in targets if "://" not in each and not each.startswith("mailto:")]
    assert [each for each in local if not (path.parent / each).exists()] == []


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
