"""What a failure costs of a task's retries."""

from __future__ import annotations

from typing import Any, cast

import pytest
from parsl.serialize.errors import SerializationError
from udi_parsl import retry_handler

from udi_core import AgentLost, MountError, UsageError

TASK = cast(Any, None)


@pytest.mark.parametrize(
    ("error", "retries"),
    [
        (AgentLost("lost", "", ""), 9),
        (MountError("here", "", ""), 1),
        (ValueError("the task's own"), 1),
        (UsageError("no Python", "", ""), 0),
        (SerializationError("function"), 0),
    ],
)
def test_how_often_a_task_with_one_retry_runs_again(error: Exception, retries: int) -> None:
    cost, again = 0.0, 0
    while (cost := cost + retry_handler(error, TASK)) < 1.05:
        again += 1
    assert (again >= retries) if retries == 9 else (again == retries)
