"""Every error has three parts and an exit code, and survives the way from one process to another."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from udi_core import errors
from udi_core.errors import MountError, UdiError


def tree(kind: type[UdiError]) -> Iterator[type[UdiError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from tree(each)


@pytest.mark.parametrize("kind", list(tree(UdiError)), ids=lambda kind: kind.__name__)
def test_each_says_what_to_do_next(kind: type[UdiError]) -> None:
    error = kind("It failed", "because")
    assert 0 < error.exit_code < 128
    assert bool(error.hint) == (kind is not MountError), "a backend's excuse is part of another error"
    assert kind("It failed", "because", "Do this.").hint == "Do this."
    assert str(kind("a", "b", "c")) == "a\nb\nc"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.brief, copy.details, copy.hint) == (kind, error.brief, error.details, error.hint)


def test_the_tree_in_the_documentation_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for kind in tree(UdiError):
        (line,) = [line for line in errors.__doc__.splitlines() if kind.__name__ in line.split()]
        assert str(kind.exit_code) in line.split()
