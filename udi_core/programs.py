"""Where a program is: the search of :mod:`udi_core._process` without its import of subprocess (10 ms)."""

from __future__ import annotations

import os
import sys

from udi_core.errors import ToolMissing

#: What starts ``udi``, on this node and on another.
PROGRAM = (sys.executable, "-P", "-m", "udi_core")

# Ordinary users often lack sbin in PATH, and a task's environment may have no PATH at all.
_USUAL = ("/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/usr/local/sbin", "/sbin")


def find_program(name: str) -> str | None:
    """Absolute path of a program, or None.  ``UDI_TOOL_<NAME>`` takes the place of the search."""
    override = os.environ.get("UDI_TOOL_" + name.upper().replace("-", "_"))
    if override:
        return override if os.access(override, os.X_OK) else None
    for directory in (*os.environ.get("PATH", "").split(":"), *_USUAL):
        path = f"{directory}/{name}"
        if directory.startswith("/") and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


def require_program(name: str, *, reason: str, package: str) -> str:
    """Absolute path of a program.

    Raises:
        ToolMissing: says what the program is for and which Debian package holds it.
    """
    path = find_program(name)
    if path is None:
        raise ToolMissing(
            f"{name} is not installed",
            f"It is needed to {reason}.",
            f"Ask an administrator for: apt-get install {package}   (or: conda install -c conda-forge {package})",
        )
    return path
