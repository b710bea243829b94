"""Cells of a notebook as tasks: what they give back."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from parsl.app.errors import BashExitFailure
from udi_parsl.notebook import Printed, run_lines

from udi_core import ToolFailed


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("x + 1", 4),
        ("y = x\ny * 2", 6),
        ("print(x)\ny = 1", "3\n"),
        ("print(x)\nNone", None),
        ("", ""),
        ("def double():\n    return 2 * x\ndouble()", 6),
    ],
)
def test_python_gives_its_last_value_or_what_it_printed(source: str, result: Any) -> None:
    assert run_lines(source, {"x": 3}) == result


@pytest.fixture
def task(tmp_path: Path) -> Future[int]:
    (tmp_path / "out").write_text("out\n")
    (tmp_path / "err").write_text("".join(f"line {number}\n" for number in range(20)))
    made: Any = Future()
    made.task_record = {}
    found: Future[int] = made
    return found


def test_shell_gives_what_it_printed(task: Future[int], tmp_path: Path) -> None:
    printed = Printed(task, str(tmp_path / "out"), str(tmp_path / "err"))
    assert not printed.cancel(), "the task could not be"
    task.set_result(0)
    assert printed.result(0) == "out\n"


def test_shell_that_fails_shows_the_end_of_its_errors(task: Future[int], tmp_path: Path) -> None:
    printed = Printed(task, str(tmp_path / "out"), str(tmp_path / "err"))
    task.set_exception(BashExitFailure("shell_lines", 3))
    with pytest.raises(ToolFailed, match="status 3") as caught:
        printed.result(0)
    assert caught.value.details.splitlines() == [f"line {number}" for number in range(12, 20)]


def test_what_keeps_shell_from_running_is_passed_on(task: Future[int], tmp_path: Path) -> None:
    printed = Printed(task, str(tmp_path / "none"), str(tmp_path / "none"))
    task.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        printed.result(0)
