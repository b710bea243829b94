"""Describe a function so that an agent on any Python can make it again.

Bytecode runs only on the Python that made it (another minor version does not fail, it crashes), so a specification
carries a recipe of sources too (:mod:`udi_core.agent.source`).  What cannot go that way is named in ``problem``, so
that it can be refused before a task is sent.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import pickle
import types
from collections.abc import Callable
from typing import Any

from udi_core.agent.pickling import by_value, own_modules
from udi_core.agent.source import NotPortable, Recipe

#: This Python's bytecode version.
MAGIC = importlib.util.MAGIC_NUMBER


def specify(function: Callable[..., Any]) -> dict[str, Any]:
    """The specification of a function: plain values only.

    Keys: ``id`` (equal for equal functions), ``name``, ``module``, ``magic``, ``bytecode`` (by cloudpickle, or None),
    ``source`` (or None), ``problem`` (why there is no source, or "").
    """
    function = inspect.unwrap(function)
    name = getattr(function, "__name__", type(function).__name__)
    bytecode, bytecode_problem = None, ""
    try:
        bytecode = _by_value(function)
    except Exception as error:
        bytecode_problem = f"cloudpickle: {error}"
    source, problem = None, ""
    try:
        source = _source(function)
    except NotPortable as error:
        problem = str(error)
    except Exception as error:
        # Scripts hold objects of every kind, which may raise whatever they like when they are looked at; an image with
        # this same Python needs no source.
        problem = f"{type(error).__name__}: {error}"
    if bytecode is None and source is None:
        raise NotPortable(f"{name}: {problem}; {bytecode_problem}")
    state = hashlib.sha256(pickle.dumps((MAGIC, bytecode, source), protocol=4))
    return {
        "id": state.hexdigest(),
        "name": name,
        "module": function.__module__,
        "magic": MAGIC,
        "bytecode": bytecode,
        "source": source,
        "problem": problem,
    }


def _by_value(function: Callable[..., Any]) -> bytes:
    """The function with its code: by reference it would need its module in the image."""
    data: bytes = by_value(function, own_modules(function.__module__), 4)[0]
    return data


def _source(function: Any) -> dict[str, Any]:
    if not isinstance(function, types.FunctionType):
        raise NotPortable(f"{function!r} is no plain function")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise NotPortable(f"{function.__name__!r} is a coroutine")
    recipe = Recipe(own_modules(function.__module__))
    space, name = recipe.function(function)
    return {"steps": recipe.steps, "space": space, "name": name}
