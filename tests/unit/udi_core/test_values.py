"""Values behave as the standard library's frozen dataclasses do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator

import pytest

from udi_core import contexts, values
from udi_core.layout import Mount
from udi_core.volumes import Volume


@values.dataclass(frozen=True, slots=True)
class Point:
    """A point."""

    x: int
    y: int = 2
    tags: list[str] = values.field(default_factory=list)


def test_construction_and_its_errors() -> None:
    point = Point(1)
    assert (point.x, point.y, point.tags) == (1, 2, [])
    assert Point(1).tags is not point.tags
    assert Point(y=3, x=1) == Point(1, 3) != Point(1, 4)
    for args, kwargs in (((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 1}), ((1,), {"z": 1})):
        with pytest.raises(TypeError):
            Point(*args, **kwargs)
    with pytest.raises(TypeError):
        Volume("/a", "/b")  # type: ignore[misc]


def test_values_do_not_change() -> None:
    point = Point(1)
    with pytest.raises(AttributeError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    with pytest.raises(AttributeError):
        point.other = 2  # type: ignore[attr-defined]
    assert point.x == 1


def test_they_can_be_hashed_printed_matched_pickled_and_copied() -> None:
    mount = Mount("bind", "/a")
    assert {mount, Mount("bind", "/a")} == {mount}
    assert repr(mount) == "Mount(kind='bind', source='/a', origin='', bound=False)"
    assert pickle.loads(pickle.dumps(mount)) == copy.deepcopy(mount) == mount
    match mount:
        case Mount(kind, source):
            assert (kind, source) == ("bind", "/a")
    assert str(Volume(source="/a", target="/b", read_only=True)) == "/a:/b:ro"


def test_the_functions_of_dataclasses_work_on_them() -> None:
    point = Point(1)
    assert dataclasses.is_dataclass(point)
    assert dataclasses.fields(Point) == dataclasses.fields(point), "made once: asdict asks for each value"
    assert dataclasses.asdict(point) == {"x": 1, "y": 2, "tags": []}
    assert [each.name for each in dataclasses.fields(point)] == ["x", "y", "tags"] == list(values.names(Point))
    assert dataclasses.replace(point, x=5) == values.replace(point, x=5) == Point(5)


def test_contexts() -> None:
    seen = []

    @contexts.contextmanager
    def noted(name: str) -> Iterator[str]:
        """About it."""
        seen.append("enter")
        try:
            yield name
        except KeyError:
            seen.append("caught")
        finally:
            seen.append("leave")

    with noted("x") as name:
        assert name == "x" and seen == ["enter"]
    with noted("x"):
        raise KeyError
    with pytest.raises(ValueError, match="mine"), noted("x"):
        raise ValueError("mine")
    assert seen == ["enter", "leave", "enter", "caught", "leave", "enter", "leave"]
    assert noted.__doc__ == "About it."
    with contexts.suppress(OSError, KeyError):
        raise FileNotFoundError
    with pytest.raises(ValueError, match="mine"), contexts.suppress(OSError):
        raise ValueError("mine")
