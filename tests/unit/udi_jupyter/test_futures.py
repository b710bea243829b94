"""Futures that show themselves."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from udi_jupyter.futures import Tasks, line, outcome, state


def future(result: Any = None, error: Exception | None = None) -> Future[Any]:
    made: Future[Any] = Future()
    if error is not None:
        made.set_exception(error)
    elif result is not None:
        made.set_result(result)
    return made


def cancelled() -> Future[Any]:
    made: Future[Any] = Future()
    made.cancel()
    return made


def launched() -> Future[Any]:
    """As Parsl's are: running by their record only."""
    made: Any = Future()
    made.task_record = {"status": SimpleNamespace(name="launched"), "func_name": "fit<", "id": 7}
    found: Future[Any] = made
    return found


@pytest.mark.parametrize(
    ("what", "shown", "came"),
    [
        (future(), "waiting", ""),
        (launched(), "running", ""),
        (future(3), "done", "3"),
        (future("two\nlines"), "done", "two lines"),
        (future("x" * 200), "done", "x" * 79 + "…"),
        (future(error=ValueError("no")), "failed", "ValueError: no"),
        (cancelled(), "failed", "cancelled"),
    ],
    ids=["waiting", "launched", "number", "text", "long", "error", "cancelled"],
)
def test_what_a_future_shows(what: Future[Any], shown: str, came: str) -> None:
    assert (state(what), outcome(what)) == (shown, came)
    assert f"● {shown}" in line(what) and came in line(what)


def test_html_is_escaped() -> None:
    assert "fit&lt; 7" in line(launched())
    assert "&lt;b&gt;" in line(future("<b>")) and "<b>" not in line(future("<b>"))
    assert "x = &lt;" in Tasks([future(1)], ["x = <"])._repr_html_()


def test_tasks_are_a_sequence_with_a_table() -> None:
    tasks = Tasks([future(1), future(error=KeyError("k")), future()], ["a", "b", "c"])
    assert len(tasks) == 3 and tasks.done == 2 and tasks[0].result() == 1 and len(tasks[1:]) == 2
    assert repr(tasks) == "a  done  1\nb  failed  KeyError: 'k'\nc  waiting"
    assert Tasks([future(1), future(2)], ["a", "b"]).results() == [1, 2]
    with pytest.raises(KeyError):
        Tasks([future(1), future(error=KeyError("k"))], ["a", "b"]).results()
