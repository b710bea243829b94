"""How far long work is, where no widgets are."""

from __future__ import annotations

import pytest
from udi_jupyter.board import Board, Lines, Row


@pytest.mark.parametrize(
    ("row", "text", "ended"),
    [
        (Row("Tasks done", 3, 8), "Tasks done: 3 of 8", False),
        (Row("Tasks done", 8, 8), "Tasks done: 8 of 8", True),
        (Row("Downloading 4f53", 159_000_000, 318_000_000), "Downloading 4f53: 50 %", False),
        (Row("Waiting for 4f53"), "Waiting for 4f53: 0 of 0", False),
    ],
)
def test_a_row(row: Row, text: str, ended: bool) -> None:
    assert (str(row), row.ended) == (text, ended)


def test_a_count_is_told_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    with Board() as board:
        for done in (0, 0, 1, 1):
            board.count("Tasks <done>", done, 1)
    assert capsys.readouterr().out == "udi: Tasks <done>: 0 of 1\nudi: Tasks <done>: 1 of 1\n"
    assert Lines([Row("<a>", 1, 2)])._repr_html_() == "&lt;a&gt;: 1 of 2"
