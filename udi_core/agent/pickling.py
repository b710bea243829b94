"""Pickles of things that the user's script defines, whose modules an image lacks."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import threading
import types
import typing
from typing import Any

#: Kinds of objects that pickle by their name in a module.
OWN_KINDS = (type, types.FunctionType, typing.TypeVar, typing.NewType, type(functools.cache(len)))

# What cloudpickle sends by value it knows for the whole process; tasks are packed by many threads.
_registry = threading.RLock()


def own_modules(module: str) -> tuple[str, ...]:
    """The modules whose definitions travel with a function of ``module``; all others go by name."""
    return tuple(dict.fromkeys(("__main__", module)))


def by_value(value: Any, own: tuple[str, ...], protocol: int) -> list[Any]:
    """The parts of a value in which what the modules ``own`` define is sent by cloudpickle, with its code."""
    import cloudpickle

    with _registry:
        modules = [sys.modules[name] for name in own if name in sys.modules and name != "__main__"]
        fresh = [each for each in modules if each.__name__ not in cloudpickle.list_registry_pickle_by_value()]
        for module in fresh:
            cloudpickle.register_pickle_by_value(module)
        try:
            return _parts(_code_pickler(), value, protocol)
        finally:
            for module in fresh:
                cloudpickle.unregister_pickle_by_value(module)


@functools.cache
def _code_pickler() -> Any:
    """cloudpickle's pickler, but that code keeps the name of its file: a traceback then shows the script's lines."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, types.CodeType):
                make, arguments = self.dispatch_table[types.CodeType](value)
                return make, tuple(value.co_filename if each == "<dynamic-code>" else each for each in arguments)
            return super().reducer_override(value)

    return Pickler


def _parts(pickler: Any, value: Any, protocol: int) -> list[Any]:
    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler(file, protocol, buffer_callback=buffers.append if protocol >= 5 else None).dump(value)
    return [file.getvalue(), *(each.raw() for each in buffers)]


class OwnPickler(pickle.Pickler):
    """Notes what it pickles by the name of a module that an image lacks.

    It is C but for what is neither a number, a string, nor a container of those.
    """

    def __init__(self, own: tuple[str, ...], protocol: int) -> None:
        self._file = io.BytesIO()
        self._buffers: list[pickle.PickleBuffer] = []
        super().__init__(self._file, protocol, buffer_callback=self._buffers.append if protocol >= 5 else None)
        self._own = own
        self.found: list[Any] = []

    def parts(self, value: Any) -> list[Any]:
        self.dump(value)
        return [self._file.getvalue(), *(each.raw() for each in self._buffers)]

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, OWN_KINDS) and value.__module__ in self._own:
            self.found.append(value)
        return NotImplemented
