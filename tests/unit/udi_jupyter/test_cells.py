"""Cells in images: their output, and the names that they share with the notebook."""

from __future__ import annotations

import sys

import pytest
from udi_jupyter.cells import copy_output, ended_with, split_names

from udi_core import PIPE, Process, UsageError, spawn


def started(code: str) -> Process[bytes]:
    return spawn([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE, start_new_session=True)


def test_output_is_passed_on_whatever_its_bytes_are() -> None:
    code = r"""
import os
for part in (b"\xc3", b"\xa4 ", b"\xff\n"):  # a letter in two writes, and a byte that is no text
    os.write(1, part)
os.write(2, b"errors")
"""
    out, err = list[str](), list[str]()
    process = started(code)
    copy_output(process, out.append, err.append)
    assert ("".join(out), "".join(err), process.wait()) == ("ä \N{REPLACEMENT CHARACTER}\n", "errors", 0)


def test_a_process_ends_with_its_block() -> None:
    code = "import signal, sys, time\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(3))\nprint(1, flush=True)\n"
    process = started(code + "time.sleep(600)")
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    with pytest.raises(KeyboardInterrupt), ended_with(process):
        raise KeyboardInterrupt
    assert process.poll() in (3, -9)  # killed, where it did not end within five seconds


def test_names_of_variables() -> None:
    assert split_names("a, b,,c_1 ") == ["a", "b", "c_1"]
    for wrong in ("1x", "a b", "a.b"):
        with pytest.raises(UsageError, match="is not the name of a variable"):
            split_names(wrong)
