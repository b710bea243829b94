"""Putting the front on PATH, and taking it off again.

Nothing here happens unasked: importing or installing UDI never shadows a real apptainer.  Asked for are
``eval "$(udi env snakemake)"``, the modulefile, and ``UDI_SNAKEMAKE=1`` with the hook package
``snakemake_executor_plugin_udi``.  All three set the same variables, so that each of them reaches jobs on other nodes.

Imported at the start of every Snakemake process: os and sys only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

SWITCH = "UDI_SNAKEMAKE"
PYTHON = "UDI_PYTHON"
#: Asks the front for a sandbox that stands, on its standard input.
STAND = "UDI_FRONT_STAND"
#: A directory with this file holds fronts, whichever installation they belong to.
MARKER = "udi-front"
PROGRAMS = ("apptainer", "singularity")


def front_directory() -> str:
    """The directory that holds nothing but the fronts."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin")


def is_front(directory: str) -> bool:
    return os.path.exists(os.path.join(directory, MARKER))


def real_program(path: str) -> str | None:
    """The real apptainer or singularity that a PATH leads to, fronts left out; None if there is none."""
    for directory in path.split(os.pathsep):
        if directory and not is_front(directory):
            for name in PROGRAMS:
                candidate = os.path.join(directory, name)
                if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
                    return candidate
    return None


def without_fronts(path: str) -> str:
    return os.pathsep.join(directory for directory in path.split(os.pathsep) if not is_front(directory or "."))


def variables(environ: Mapping[str, str], python: str = "") -> dict[str, str]:
    """What has to be set for the front to be found, here and in every process that inherits it.  Idempotent."""
    rest = without_fronts(environ.get("PATH", os.defpath))
    return {
        "PATH": front_directory() + (os.pathsep + rest if rest else ""),
        PYTHON: python or sys.executable,
        SWITCH: "1",
    }


def activate(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Put the front on PATH if ``UDI_SNAKEMAKE`` is 1; returns whether it did."""
    if environ.get(SWITCH) != "1":
        return False
    environ.update(variables(environ))
    return True


def shell_code(environ: Mapping[str, str], shell: str, *, off: bool = False) -> str:
    """Lines for ``eval`` in sh (bash, zsh, dash), csh (tcsh) or fish."""
    if off:
        wanted: dict[str, str | None] = {
            "PATH": without_fronts(environ.get("PATH", os.defpath)),
            PYTHON: None,
            SWITCH: None,
        }
    else:
        wanted = dict(variables(environ))
    return "".join(_assignment(shell, name, value) + "\n" for name, value in wanted.items())


def _assignment(shell: str, name: str, value: str | None) -> str:
    if shell == "csh":
        # csh expands "!" even between single quotes.
        return f"unsetenv {name};" if value is None else f"setenv {name} {_quote(value).replace('!', chr(92) + '!')};"
    if shell == "fish":
        if value is None:
            return f"set -e {name};"
        quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        return f"set -gx {name} {quoted};" if name != "PATH" else f"set -gx PATH (string split : -- {quoted});"
    return f"unset {name};" if value is None else f"export {name}={_quote(value)};"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
