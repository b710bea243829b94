"""The command ``udi`` as a user runs it, and what an error of it must look like."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from udi_core import cli

Done = subprocess.CompletedProcess[str]


def udi(*argv: str, env: Mapping[str, str], input: str | None = None, cwd: Path | None = None) -> Done:
    """Run it as a process."""
    command = [sys.executable, "-m", "udi_core", *argv]
    return subprocess.run(command, env=env, input=input or "", capture_output=True, text=True, timeout=240, cwd=cwd)


def udi_here(*argv: str, env: Mapping[str, str]) -> Done:
    """Run it in this process, for tables of many cases: arguments, texts and exit code are the command's own.

    ``udi run`` and ``udi shell`` would replace this process: use :func:`udi` for these.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, env, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = cli.main(argv)
    return Done(argv, status, out.getvalue(), err.getvalue())


def tree(path: str) -> list[str]:
    """All of a store but its empty directories."""
    return sorted(os.path.relpath(os.path.join(top, name), path) for top, _, names in os.walk(path) for name in names)


def three_parts(done: Done, code: int, *words: str) -> None:
    """Assert that a command failed as documented: exit code, ``udi: `` and what happened, indented details."""
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and "should not" not in done.stderr, done.stderr
    lines = done.stderr.strip().splitlines()
    brief = next((number for number, line in enumerate(lines) if line.startswith("udi: ")), None)
    assert brief is not None, done.stderr
    last = max(number for number, line in enumerate(lines) if line.startswith("udi: "))
    assert all(line.startswith("     ") for line in lines[last + 1 :]), done.stderr
    assert not any(ord(each) < 32 and each != "\n" for each in done.stderr), "controls reach the terminal"
    for word in words:
        assert word in done.stderr, (word, done.stderr)
