"""Arguments for an agent: by the C pickler where that does, else with the code of what the script defines."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import pytest

from udi_core import pack_arguments, specify, unpack


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


class Slow(Point):
    def __getstate__(self) -> dict[str, int]:
        time.sleep(0.001)  # so that other threads have their turn before the class is pickled
        return {"x": self.x}


def twice(value: int) -> int:
    return 2 * value


def packed(value: Any, *, same: bool = True, protocol: int = 5) -> list[Any]:
    return pack_arguments(value, specify(twice), same=same, protocol=protocol)


@pytest.mark.parametrize("protocol", [4, 5])
def test_plain_values_are_pickled_as_pickle_does(protocol: int) -> None:
    value = ((1, "two", b"three", [4.0, {"five": None}]), {})
    assert packed(value, protocol=protocol) == [b"", pickle.dumps(value, protocol)]


@pytest.mark.parametrize("value", [Point(3), Point, twice, lambda: 4, [Point(1)]])
def test_what_the_script_defines_goes_by_value(value: Any) -> None:
    _, part = packed(value)
    assert b"cloudpickle" in part
    assert type(unpack([part])) is type(value)
    assert __name__ not in cloudpickle.list_registry_pickle_by_value()


def test_classes_of_the_script_keep_their_identity() -> None:
    _, part = packed((Point(1), Point(2)))
    one, two = unpack([part])
    assert type(one) is type(two) is Point


def test_threads_do_not_disturb_each_other() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: packed(Slow(number))[1], range(100)))
    assert all(b"cloudpickle" in each for each in found)


def test_what_cannot_be_pickled_raises() -> None:
    with pytest.raises(TypeError, match="generator"):
        packed(each for each in ())
