"""What the commands print."""

from __future__ import annotations

import pytest

from udi_core.cli.show import progress_text, size, table
from udi_core.progress import Progress


def test_numbers_stand_to_the_right_and_the_last_column_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    table(["TASKS", "PULL", "IMAGE"], [["9", "12.5 s", "b" * 200], ["1200", "0", "a"]], numbers=2)
    assert capsys.readouterr().out.splitlines() == [
        "TASKS    PULL  IMAGE",
        f"    9  12.5 s  {'b' * 200}",
        " 1200       0  a",
    ]


def test_text_stands_to_the_left_without_blanks_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    table(["ID", "REFERENCE"], [["abcdef", "-"], ["a", "ubuntu"]])
    assert capsys.readouterr().out == "ID      REFERENCE\nabcdef  -\na       ubuntu\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (318e6, "318 MB"), (1.5e13, "15 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(int(count)) == text


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Progress("flatten", "layers", done=42, total=100, unit="sets"), "Flattening layers 42 %"),
        (
            Progress("download", "4f53", done=159_000_000, total=318_000_000, unit="B"),
            "Downloading 4f53 50 % of 318 MB",
        ),
        (Progress("wait", "4f53", note="pulled by n1"), "Waiting for 4f53 pulled by n1"),
    ],
)
def test_progress_as_a_line(event: Progress, text: str) -> None:
    assert progress_text(event) == text
