"""The only door to other programs: the one module that imports :mod:`subprocess`.

``subprocess`` costs 10 ms to import, so a path that merely *becomes* another program (``udi run``) uses
``os.execve`` in :mod:`udi_core.sandbox` and must not import this module.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Any

from udi_core.errors import ToolFailed, ToolMissing

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT
Process = subprocess.Popen
TimeoutExpired = subprocess.TimeoutExpired
Completed = subprocess.CompletedProcess

#: Debian package that holds each program; conda-forge names are in environment.yml.
PACKAGES = {
    "bwrap": "bubblewrap",
    "fusermount3": "fuse3",
    "mksquashfs": "squashfs-tools",
    "nsenter": "util-linux",
    "squashfuse_ll": "squashfuse",
    "tar2sqfs": "squashfs-tools-ng",
    "unsquashfs": "squashfs-tools",
}

# Ordinary users often lack sbin in PATH, and that is where mount(8)'s helpers live.
_MORE_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


def find_tool(name: str) -> str | None:
    """Absolute path of a program, or None.  ``UDI_TOOL_<NAME>`` overrides the search (tests, sites)."""
    override = os.environ.get("UDI_TOOL_" + name.upper().replace("-", "_"))
    if override:
        return override if os.access(override, os.X_OK) else None
    return shutil.which(name) or shutil.which(name, path=_MORE_PATH)


def require_tool(name: str, *, reason: str) -> str:
    """Absolute path of a program.

    Raises:
        ToolMissing: says what the program is for and which package holds it.
    """
    path = find_tool(name)
    if path is None:
        package = PACKAGES.get(name, name)
        raise ToolMissing(
            f"{name} is not installed",
            f"It is needed to {reason}.",
            f"Ask an administrator for: apt-get install {package}   (or: conda install -c conda-forge {package})",
        )
    return path


def run(
    argv: Sequence[str],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    timeout: float | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and capture both outputs; it inherits ``pass_fds``.

    Raises:
        ToolMissing: the program cannot be started.
        ToolFailed: it ended with a status other than 0 (only if ``check``) or exceeded ``timeout`` seconds.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            env=env,
            cwd=cwd,
            timeout=timeout,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        raise ToolMissing(f"{argv[0]} is not installed", str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(f"{os.path.basename(argv[0])} did not finish within {timeout} s") from error
    if check and done.returncode:
        raise ToolFailed(
            f"{os.path.basename(argv[0])} failed with {describe_status(done.returncode)}",
            tail(done.stderr or done.stdout),
        )
    return done


def spawn(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program and return at once; ``options`` are those of :class:`subprocess.Popen`.

    Raises:
        ToolMissing: the program cannot be started.
    """
    try:
        return subprocess.Popen(list(argv), **options)
    except FileNotFoundError as error:
        raise ToolMissing(f"{argv[0]} is not installed", str(error)) from error


def describe_status(status: int) -> str:
    """``status 3`` or ``signal 9``, from a :class:`subprocess.Popen` return code."""
    return f"signal {-status}" if status < 0 else f"status {status}"


def tail(output: bytes | IO[bytes], lines: int = 8) -> str:
    """The last lines of a program's output, for an error's details."""
    data = output if isinstance(output, bytes) else output.read()
    return "\n".join(data.decode(errors="replace").strip().splitlines()[-lines:])
