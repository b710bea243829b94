"""What a failure costs of a task's retries."""

from __future__ import annotations

from typing import Any, cast

import pytest
from parsl.serialize.errors import SerializationError
from udi_parsl import retry_handler

from udi_core import AgentLost, MountError, UsageError

TASK = cast(Any, None)


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (AgentLost("lost", "", ""), 11),
        (MountError("here", "", ""), 2),
        (ValueError("the task's own"), 2),
        (UsageError("no Python", "", ""), 1),
        (SerializationError("function"), 1),
    ],
)
def test_how_often_a_task_with_one_retry_is_tried(error: Exception, tries: int) -> None:
    cost = retry_handler(error, TASK)
    assert 1 + int(1.000001 / cost) == tries
