"""Results and exceptions of tasks: opened on the submit side only, and never with an error.

The worker between image and submit side may lack the classes that a result is made of, so a result passes through
it as bytes.  A result that cannot be unpickled where Parsl unpickles it would hang HTEX for ever: opening one never
raises, it yields an exception for the task.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import pickle
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from parsl.app.errors import RemoteExceptionWrapper

from udi_core import unpack

#: Names the submitting process: a task that finds itself in it (ThreadPoolExecutor) opens its result itself.
SUBMITTER = f"{os.getpid()}-{uuid.uuid4()}"


class ImageTaskError(Exception):
    """A task failed inside an image, with an exception that this side cannot make again.

    Attributes:
        remote_type: name of the exception's class in the image.
        remote_traceback: the traceback, as text.
    """

    remote_type = ""
    remote_traceback = ""


class RemoteTraceback(Exception):
    """The cause of an exception from an image; its text is the traceback there."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


class Sealed:
    """A result or an exception on its way: unpickling it opens it."""

    def __init__(self, opener: Callable[[list[Any]], Any], parts: Sequence[Any]) -> None:
        self._opener, self._parts = opener, parts

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self._opener, ([bytes(part) for part in self._parts],)

    def open(self) -> Any:
        """What is inside; an exception comes as Parsl's wrapper."""
        return self._opener(list(self._parts))


def open_result(parts: list[Any]) -> Any:
    """The result of some parts, or a wrapped exception that says why it cannot be opened."""
    try:
        return unpack(parts)
    except Exception as error:
        return wrapped(ImageTaskError(f"the result cannot be unpickled on the submit side: {error!r}"))


def open_error(parts: list[Any]) -> RemoteExceptionWrapper:
    """The exception that an agent described, wrapped; of its own class if that can be made here."""
    try:
        _, described = pickle.loads(parts[0])  # noqa: S301 - the agent is our own, and the task is the user's
    except Exception as error:
        return wrapped(ImageTaskError(f"the task's exception cannot be read: {error!r}"))
    return wrapped(rebuild(described))


def rebuild(described: dict[str, Any]) -> Exception:
    """An exception like the one that was described, with the traceback in the image as its cause."""
    error = _unpickled(described["pickled"])
    if not isinstance(error, Exception):
        error = _of_a_class_known_here(described) or _substitute(described)
    error.__cause__ = RemoteTraceback(described["traceback"])
    return error


def _unpickled(data: bytes | None) -> Any:
    with contextlib.suppress(Exception):
        return None if data is None else pickle.loads(data)  # noqa: S301 - as in open_error
    return None


def _of_a_class_known_here(described: dict[str, Any]) -> Exception | None:
    """An exception of a class of the user's script: the image has a copy of that class, which pickle will not name."""
    found: Any = sys.modules.get(described["module"])
    for name in described["name"].split("."):
        found = getattr(found, name, None)
    args, state = _unpickled(described["args"]), _unpickled(described["state"])
    if not (isinstance(found, type) and issubclass(found, Exception)) or args is None or state is None:
        return None
    with contextlib.suppress(Exception):
        error = found.__new__(found, *args)
        error.args = args
        error.__dict__.update(state)
        return error
    return None


def _name(described: dict[str, Any]) -> str:
    module = described["module"]
    return str(described["name"]) if module == "builtins" else f"{module}.{described['name']}"


def _substitute(described: dict[str, Any]) -> ImageTaskError:
    """An :class:`ImageTaskError` that is also what the original was among the builtin exceptions."""
    bases = (getattr(builtins, name, None) for name in described["bases"])
    base = next((each for each in bases if isinstance(each, type) and issubclass(each, Exception)), Exception)
    text = f"{_name(described)}: {described['message']}"
    error: ImageTaskError
    try:
        error = _class_of(base)(text)
    except TypeError:  # UnicodeDecodeError and its like want five arguments
        error = ImageTaskError(text)
    error.remote_type = _name(described)
    error.remote_traceback = described["traceback"]
    return error


_classes: dict[type[Exception], type[ImageTaskError]] = {}


def _class_of(base: type[Exception]) -> type[ImageTaskError]:
    if base is Exception:
        return ImageTaskError
    if base not in _classes:
        body = {"__reduce__": lambda self: (_again, (base, self.args, self.__dict__))}
        _classes[base] = type(f"Image{base.__name__}", (ImageTaskError, base), body)
    return _classes[base]


def _again(base: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> ImageTaskError:
    error = _class_of(base)(*args)
    error.__dict__.update(state)
    return error


def wrapped(error: Exception) -> RemoteExceptionWrapper:
    """Parsl's form of a task's exception, which it raises on the submit side."""
    return RemoteExceptionWrapper(type(error), error, error.__traceback__)
