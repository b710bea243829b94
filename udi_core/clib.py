"""Functions of the C library for which :mod:`os` has none.

The package ``ctypes`` costs a warm start more than 1 ms, for types that nobody here uses; the module that it is built
on, and that this one uses, does not.  Arguments are integers (C's ``int``), bytes (``char *``, also for a
structure that the kernel only reads), None (a null pointer) and :class:`UnsignedLong`.
"""

from __future__ import annotations

import _ctypes
import os

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable

_HERE = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]


class UnsignedLong(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C's ``unsigned long``."""

    _type_ = "L"


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


def function(name: str) -> Callable[..., int]:
    """The C library's function of this name; it returns an ``int``, and leaves its error to :func:`error`."""
    return _Function(_ctypes.dlsym(_HERE, name))


def error() -> int:
    """errno of the last call in this thread."""
    return _ctypes.get_errno()
