"""What of a function goes along as source, and what is refused."""

from __future__ import annotations

import contextlib
import enum
import functools
import linecache
import math
import os.path
import pickle
import sys
import threading
import types
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pytest

from udi_core import NotPortable, pack_arguments, specify, unpack
from udi_core.agent import in_image

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


class Odd(Exception):
    pass


LOCK = threading.Lock()


def uses_a_lock() -> bool:
    return LOCK.locked()


def uses_a_class_that_needs_a_lock() -> Any:
    return NeedsALock()


class NeedsALock:
    lock = LOCK


class Colour(enum.Enum):
    RED = 1


def uses_an_enum() -> int:
    return Colour.RED.value


@functools.cache
def cached(value: int) -> int:
    return value * FACTOR


@contextlib.contextmanager
def managed(value: int) -> Iterator[int]:
    yield value + FACTOR


def uses_library_decorators(value: int) -> int:
    with managed(cached(value)) as found:
        return found


class Shape:
    sides: ClassVar[int] = 0

    def __init_subclass__(cls, **options: Any) -> None:
        cls.kind = cls.__name__.lower()

    def describe(self) -> str:
        return f"{self.kind} of {self.sides} sides, {self.area()}"

    def area(self) -> float:
        raise NotImplementedError


@dataclass(order=True)
class Square(Shape):
    sides: ClassVar[int] = 4
    length: float = FACTOR
    tags: list[Colour] = field(default_factory=lambda: [Colour.RED])

    @property
    def half(self) -> float:
        return self.length / 2

    def area(self) -> float:
        return super().describe.__name__ == "describe" and self.length * self.length

    @classmethod
    def unit(cls) -> Square:
        return cls(1)


Pair = namedtuple("Pair", "left right")
Element = TypeVar("Element")


class Stack(Generic[Element]):
    def __init__(self) -> None:
        self.elements: list[Element] = []

    def push(self, element: Element) -> Stack[Element]:
        self.elements.append(element)
        return self


class Row(NamedTuple):
    name: str
    value: int = FACTOR


def uses_classes() -> Any:
    square = Square.unit()
    pair = Pair(square < Square(2), square.describe())
    return pair, Square().half, Stack().push(1).elements, Row("x").value, square.tags[0].name


triple = lambda value: value * FACTOR  # noqa: E731 - as scripts have it
also = helper


def uses_a_named_lambda_and_another_name(value: float) -> float:
    return triple(value) + also(value)


def outer_class(by: int) -> Any:
    class Local:
        def value(self) -> int:
            return by * FACTOR

    def make() -> int:
        return Local().value()

    return make


def need_each_other() -> Any:
    def ping(count: int) -> int:
        return pong(count - 1) if count else 0

    def pong(count: int) -> int:
        return ping(count)

    return ping


def raises_here() -> None:
    raise ValueError("here")  # this line is in the traceback


if FACTOR:

    def guarded(value: int) -> int:
        return value - FACTOR


def uses_a_guarded_function() -> int:
    return guarded(4)


def moved(point: Any, by: float) -> Any:
    return type(point)(point.x + by)


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
        (len, "no plain function"),
        (need_each_other(), "need each other"),
    ],
)
def test_what_cannot_go_as_source_says_why(function: Any, reason: str) -> None:
    assert reason in specify(function)["problem"]
    assert specify(function)["source"] is None


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (uses_an_object, ()),
        (uses_an_enum, ()),
        (uses_a_decorated_helper, ()),
        (uses_library_decorators, (2,)),
        (uses_classes, ()),
        (uses_a_named_lambda_and_another_name, (2.5,)),
        (uses_a_guarded_function, ()),
        (outer_class(7), ()),
    ],
)
def test_classes_and_decorators_go_along(function: Any, arguments: tuple[Any, ...]) -> None:
    assert specify(function)["problem"] == ""
    assert from_source(function)(*arguments) == function(*arguments)


def test_lines_of_a_traceback_are_those_of_the_script() -> None:
    with pytest.raises(ValueError) as caught:
        from_source(raises_here)()
    assert "this line is in the traceback" in str(caught.traceback[-1].statement)


def test_lines_of_bytecode_are_those_of_the_script_too() -> None:
    with pytest.raises(ValueError) as caught:
        in_image.load_function(specify(raises_here))()
    assert "this line is in the traceback" in str(caught.traceback[-1].statement)


def called(function: Any, *arguments: Any) -> Any:
    """What the agent of another Python answers, with this script's module out of its sight."""
    specification = {**specify(function), "magic": b"another"}
    specification["id"] += "-called"
    parts = pack_arguments((arguments, {}), specification, same=False, protocol=4)
    hidden = sys.modules.pop(__name__)
    try:
        answer = in_image.call(("call", specification, "", 4), parts, "3.6")
    finally:
        sys.modules[__name__] = hidden
    return unpack(answer[1:]) if answer[0] in (b"ok", b"plain") else pickle.loads(answer[0])


def test_classes_of_arguments_and_results() -> None:
    point = called(moved, Point(1), 2)
    assert type(point) is Point and point.x == 3
    again = called(moved, Point(2), 2)
    assert again.x == 4


def test_exceptions_of_the_script() -> None:
    def fail(kind: Any) -> None:
        raise kind("mine")

    _, described = called(fail, Odd)
    assert type(pickle.loads(described["pickled"])) is Odd


def test_arguments_that_cannot_go_as_source_are_refused() -> None:
    class Local:
        pass

    for value in (Local(), [lambda: 1]):
        with pytest.raises((NotPortable, AttributeError, pickle.PicklingError)):
            pack_arguments(value, specify(moved), same=False, protocol=4)


def test_neither_bytecode_nor_source_is_refused() -> None:
    lock = __import__("threading").Lock()

    def holds() -> Any:
        return lock

    with pytest.raises(NotPortable, match="lock"):
        specify(holds)


def test_the_reason_names_what_cannot_go() -> None:
    for function in (uses_a_lock, uses_a_class_that_needs_a_lock):
        with pytest.raises(NotPortable, match="'LOCK' cannot be pickled"):
            specify(function)


class Hostile:
    @property
    def __wrapped__(self) -> Any:
        raise RuntimeError("look away")

    def __call__(self) -> None:
        pass


HOSTILE = Hostile()


def uses_a_hostile_object() -> Any:
    return HOSTILE


def test_an_object_that_does_not_want_to_be_looked_at_is_a_problem_of_the_source_only() -> None:
    specification = specify(uses_a_hostile_object)
    assert "look away" in specification["problem"] and specification["bytecode"]


def test_equal_functions_have_equal_ids_and_changed_ones_do_not() -> None:
    assert specify(closure(1))["id"] == specify(closure(1))["id"]
    assert specify(closure(1))["id"] != specify(closure(2))["id"]


def test_the_agent_keeps_to_the_oldest_python_it_promises() -> None:
    """Its syntax is 3.6's: no walrus, no positional-only parameters, no match."""
    import ast

    ast.parse(open(in_image.__file__).read(), feature_version=(3, 6))


CELLS = [
    """
from dataclasses import dataclass

@dataclass
class Box:
    size: int
""",
    """
def grow(box, by):
    return Box(box.size + by)
""",
    """
@dataclass
class Box:  # again, and better
    size: int

    def double(self):
        return Box(2 * self.size)
""",
]


def test_what_cells_of_a_notebook_define(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    for number, text in enumerate(CELLS):
        file = f"/tmp/ipykernel_1/{number}.py"
        monkeypatch.setitem(linecache.cache, file, (len(text), None, text.splitlines(keepends=True), file))
        exec(compile(text, file, "exec"), vars(notebook))
    assert specify(notebook.grow)["problem"] == ""
    box = called(notebook.grow, notebook.Box(1), 2)
    assert type(box) is notebook.Box and box.size == 3 and box.double().size == 6
