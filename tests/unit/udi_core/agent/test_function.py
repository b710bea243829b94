"""What of a function goes along as source, and what is refused."""

from __future__ import annotations

import enum
import math
import os.path
from typing import Any

import pytest

from udi_core.agent import in_image
from udi_core.agent.function import NotPortable, specify

FACTOR = 3


class Point:
    def __init__(self, x: float) -> None:
        self.x = x

    def scaled(self) -> float:
        return self.x * FACTOR


POINT = Point(1)


def helper(value: float) -> float:
    return math.floor(value) * FACTOR


def user(value: float, more: int = FACTOR) -> float:
    return helper(value) + more + len(os.path.join("a", "b"))


def recursive(count: int) -> int:
    return 1 if count == 0 else count * recursive(count - 1)


def even(count: int) -> bool:
    return True if count == 0 else odd(count - 1)


def odd(count: int) -> bool:
    return False if count == 0 else even(count - 1)


def nested(values: list[int]) -> list[int]:
    def inner(value: int) -> int:
        return value * FACTOR

    return [inner(each) + FACTOR for each in values]


def makes_a_point(x: float) -> float:
    return Point(x).scaled()


def closure(offset: int) -> Any:
    def inner(value: int) -> int:
        return value + offset

    return inner


def uses_an_object() -> float:
    return POINT.x


def doubled(function: Any) -> Any:
    return lambda *arguments: 2 * function(*arguments)


@doubled
def decorated_helper() -> int:
    return 1


def uses_a_decorated_helper() -> int:
    return int(decorated_helper())


class Colour(enum.Enum):
    RED = 1


def uses_an_enum() -> int:
    return Colour.RED.value


def from_source(function: Any) -> Any:
    """The function as an agent on another Python would make it."""
    specification = {**specify(function), "magic": b"another"}
    return in_image.load_function({**specification, "id": specification["id"] + "-source"})


def test_helpers_modules_values_and_defaults_go_along() -> None:
    assert from_source(user)(2.5) == user(2.5)
    assert from_source(nested)([1, 2]) == nested([1, 2])
    assert from_source(makes_a_point)(2) == 6
    assert from_source(closure(5))(1) == 6


def test_recursion_alone_and_mutual() -> None:
    assert from_source(recursive)(5) == 120
    assert from_source(even)(4) is True
    assert from_source(odd)(4) is False


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda value: value, "lambda"),
        (uses_an_object, "object of a class"),
        (len, "no plain function"),
        (uses_an_enum, "base class"),
    ],
)
def test_what_cannot_go_as_source_says_why(function: Any, reason: str) -> None:
    assert reason in specify(function)["problem"]
    assert specify(function)["source"] is None


def test_a_helper_with_a_decorator_is_refused_and_not_stripped_of_it() -> None:
    assert "uses_a_decorated_helper" not in str(specify(uses_a_decorated_helper)["source"])
    assert specify(uses_a_decorated_helper)["problem"]


def test_neither_bytecode_nor_source_is_refused() -> None:
    lock = __import__("threading").Lock()

    def holds() -> Any:
        return lock

    with pytest.raises(NotPortable, match="lock"):
        specify(holds)


def test_equal_functions_have_equal_ids_and_changed_ones_do_not() -> None:
    assert specify(closure(1))["id"] == specify(closure(1))["id"]
    assert specify(closure(1))["id"] != specify(closure(2))["id"]


def test_the_agent_keeps_to_the_oldest_python_it_promises() -> None:
    """Its syntax is 3.6's: no walrus, no positional-only parameters, no match."""
    import ast

    ast.parse(open(in_image.__file__).read(), feature_version=(3, 6))
