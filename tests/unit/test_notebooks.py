"""The example notebooks as they are stored: whole, executed in order, and telling nothing of where that was."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
# Directories of whoever executed them; /tmp alone is in their own text.
_PRIVATE = re.compile(r"/(?:root|home|work|tmp|scratch|run)/[\w.-]+|127\.0\.0\.1:\d+|Traceback")


def test_there_are_four() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["database", "first_steps", "snakemake", "sweep"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= 3
    for cell in cells:
        for output in cell.outputs:
            shown = [output.get("text", "")]
            shown += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
            for text in shown:
                assert _PRIVATE.search(text) is None
