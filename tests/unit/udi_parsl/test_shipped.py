"""Tasks as HTEX carries them."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest
from parsl.app.errors import RemoteExceptionWrapper
from udi_parsl import worker
from udi_parsl.images import Choice, TaskImage, frozen
from udi_parsl.results import SUBMITTER
from udi_parsl.shipped import ImageFunction, payload, run_payload

from udi_core import specify

CHOICE = Choice(
    kind="default", digest="sha256:" + "a" * 64, python="/usr/bin/python3", version="3.11", magic="", shell="sh"
)
IMAGE = TaskImage(reference="docker:lab/reco:1", store="/store", choices=(CHOICE,))


def nothing(value: Any) -> Any:
    return value


@pytest.fixture
def function() -> ImageFunction:
    return ImageFunction(specify(nothing), nothing.__module__, SUBMITTER)


def test_a_task_arrives_as_it_was_sent(function: ImageFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(worker, "run_packed", lambda *task: seen.append(task))
    array = bytearray(os.urandom(100_000))
    run_payload(payload(function, [frozen(IMAGE), b"", b"pickle", memoryview(array)]))
    assert seen == [(IMAGE, function.specification, [b"", b"pickle", array])]


def test_only_the_arguments_of_a_task_are_pickled_anew(function: ImageFunction) -> None:
    first, second = (pickle.loads(payload(function, [frozen(IMAGE), each])) for each in (b"1", b"2"))
    assert first[:2] == second[:2] and function.pickled() is function.pickled()


def test_an_error_of_a_task_is_its_result(function: ImageFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*task: Any) -> None:
        raise KeyError("absent")

    monkeypatch.setattr(worker, "run_packed", fail)
    result = run_payload(payload(function, [frozen(IMAGE), b"", b"pickle"]))
    assert isinstance(result, RemoteExceptionWrapper)
    with pytest.raises(KeyError, match="absent"):
        result.reraise()
