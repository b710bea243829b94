"""Calls of the C library."""

from __future__ import annotations

import errno
import os

import pytest

from udi_core import clib


def test_a_call_returns_an_int_and_leaves_its_error() -> None:
    assert clib.function("umount2")(b"/nonexistent", 0) == -1
    assert clib.error() == errno.ENOENT
    assert clib.function("getpid")() == os.getpid()


def test_text_numbers_and_null_are_passed(tmp_path: os.PathLike[str]) -> None:
    assert clib.function("access")(os.fsencode(tmp_path), os.R_OK) == 0
    mount = clib.function("mount")
    # No such target: all five arguments arrived, and nothing was mounted.
    assert mount(None, b"/nonexistent/x", None, clib.UnsignedLong(1 << 40), None) == -1
    assert clib.error() in (errno.ENOENT, errno.EPERM, errno.EINVAL)


def test_a_function_that_is_not_there() -> None:
    with pytest.raises(OSError, match="no_such_function"):
        clib.function("no_such_function_at_all")
