"""Where a program is on the node, and whether one can be started in a task's view.

The search is that of :mod:`udi_core._process` without its import of subprocess (10 ms).
"""

from __future__ import annotations

import os
import sys

from udi_core.errors import CommandNotFound, NotExecutable, ToolMissing
from udi_core.tree import resolve

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from udi_core.tree import Tree

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


def check_command(program: str, search: str, workdir: str, view: Tree) -> None:
    """Whether a program can be started in a task's view: what execvp(3) would find out too late.

    Raises:
        CommandNotFound: it is not there, or the interpreter or loader that it needs is not.
        NotExecutable: it is a directory, or not executable.
    """
    if "/" in program:
        path = resolve(view, program if program.startswith("/") else f"{workdir}/{program}")
        if view.kind(path) == "":
            raise CommandNotFound(
                f"{program} is not in the image",
                f"Nothing is at {path} in the task's view.",
                "Mount it with a volume, or correct the path.",
            )
        _check_program(program, path, view)
        return
    seen = None
    for directory in search.split(":"):
        path = resolve(view, f"{directory if directory.startswith('/') else f'{workdir}/{directory}'}/{program}")
        if view.kind(path) == "file":
            if view.is_executable(path):
                _check_program(program, path, view)
                return
            seen = path
    if seen is not None:
        _check_program(program, seen, view)
    raise CommandNotFound(
        f"{program or 'A command without a name'} is not in the image",
        f"It is in no directory of PATH: {search}",
        "Check the name, or look around with: udi shell REF",
    )


def _check_program(program: str, path: str, view: Tree) -> None:
    if view.kind(path) == "dir":
        raise NotExecutable(f"{program} cannot be executed", f"{path} is a directory.", "Name a program in it.")
    if not view.is_executable(path):
        raise NotExecutable(
            f"{program} cannot be executed",
            f"{path} has no permission for you to execute it, or lies on a file system mounted noexec.",
            f"Run it by an interpreter (sh {program}), or chmod +x it.",
        )
    needs = _interpreter(view.head(path))
    if needs.startswith("/") and not view.kind(resolve(view, needs)):
        what = "interpreter" if view.head(path).startswith(b"#!") else "loader"
        raise CommandNotFound(
            f"{program} cannot be started in this image",
            f"{path} needs the {what} {needs}, which is not in the image.",
            "It was made for another system: use the image's own, or an image that has it.",
        )


def _interpreter(head: bytes) -> str:
    """What the kernel starts in a file's place: the ``#!`` of a script, the PT_INTERP of an ELF file; or ""."""
    if head.startswith(b"#!"):
        words = head[2:].partition(b"\n")[0].split()
        return os.fsdecode(words[0]) if words else ""
    if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:  # 64 bits, little-endian; others are left to the kernel
        return ""
    start, size, count = (int.from_bytes(head[at : at + n], "little") for at, n in ((32, 8), (54, 2), (56, 2)))
    for at in range(start, min(start + size * count, len(head) - 40), size or 1):
        if head[at : at + 4] == b"\3\0\0\0":  # PT_INTERP
            offset, length = (int.from_bytes(head[at + n : at + n + 8], "little") for n in (8, 32))
            return os.fsdecode(head[offset : offset + length].rstrip(b"\0"))
    return ""
