"""Exceptions on their way from an image to the submit side."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from udi_parsl.results import ImageTaskError, Sealed, open_result, rebuild

from udi_core.agent import in_image


def described(error: BaseException) -> dict[str, Any]:
    try:
        raise error
    except BaseException as raised:
        return in_image.describe(raised, "3.9.2")


def test_builtin_exceptions_come_back_as_themselves() -> None:
    error = rebuild(described(KeyError("absent")))
    assert type(error) is KeyError and error.args == ("absent",)
    assert "KeyError: 'absent'" in str(error.__cause__)


@pytest.mark.parametrize("base", [ValueError, OSError, KeyError, ArithmeticError])
def test_unknown_classes_become_their_builtin_base(base: type[Exception]) -> None:
    local = type("Local", (base,), {})
    error = rebuild({**described(local("text")), "pickled": None})
    assert isinstance(error, ImageTaskError) and isinstance(error, base)
    assert error.remote_type.endswith("Local") and "Local" in error.remote_traceback
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, base) and again.remote_type == error.remote_type


def test_exceptions_with_odd_constructors_and_exits_become_task_errors() -> None:
    unreadable = {**described(UnicodeDecodeError("a", b"b", 0, 1, "c")), "pickled": None, "args": None}
    assert type(rebuild(unreadable)) is ImageTaskError
    assert isinstance(rebuild(described(SystemExit(3))), ImageTaskError)


class OfThisScript(Exception):
    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def test_a_class_of_the_users_script_is_found_by_name() -> None:
    error = rebuild({**described(OfThisScript("text", 7)), "pickled": None})
    assert type(error) is OfThisScript and error.args == ("text",) and error.number == 7


def test_a_pickle_that_raises_on_opening_is_a_failed_task_and_no_more() -> None:
    wrapper = open_result([b"no pickle at all"])
    with pytest.raises(ImageTaskError, match="cannot be unpickled"):
        wrapper.reraise()


def test_unpickling_a_sealed_result_opens_it() -> None:
    parts = in_image.dumps({"value": [1, 2]})
    assert pickle.loads(pickle.dumps(Sealed(open_result, parts))) == {"value": [1, 2]}
    assert Sealed(open_result, parts).open() == {"value": [1, 2]}
