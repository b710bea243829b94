"""A sandbox that stands: a process goes into it once, and tasks start in it one after the other.

For a program that runs many short tasks in one image, such as Snakemake.  Building a sandbox takes four times as long
as starting a shell.  Here it is built once, and :mod:`udi_core.spares` starts the tasks in it, as children of the
program.  There is no daemon: all end with the program, or when it closes the connection.

The tasks share what :mod:`udi_core.layout` makes for one task; so where a task would get a directory that is its own
alone, empty and writable, nothing stands.
"""

from __future__ import annotations

import os
import sys

from udi_core.become import can_become
from udi_core.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

    from udi_core.layout import Step
    from udi_core.sandbox import Launch

_START = "import sys; sys.path.insert(0, sys.argv[1]); from udi_core.spares import main; main(int(sys.argv[2]))"


def stand(launch: Launch, *, root: str, inputs: Iterable[str]) -> NoReturn:
    """Become a process that starts the command of ``launch``, but for the last word, whenever it is told one.

    Who started this process does so over its standard input, as :mod:`udi_core.spares` says.

    Args:
        root: a path at which the mounted image can be looked at; it is asked before each task.
        inputs: files of which the launch was made.  Whoever is at the other end looks whether they are as they were.

    Raises:
        LaunchError: it cannot stand here; each task has to be started by itself.
    """
    import marshal

    plan = launch.plan
    if plan is None or not can_become() or own_directories(plan.steps):
        raise LaunchError("Tasks cannot share a sandbox here", "Each is started in one of its own.")
    steps = [(step.kind, step.source, step.target) for step in plan.steps]
    view = plan.server, plan.anchor, steps, plan.command, dict(plan.env), plan.workdir, plan.die_with_parent
    hello = "\0".join([*launch.record, *inputs])
    fd = os.memfd_create("udi-plan", 0)
    with open(fd, "wb", closefd=False) as file:
        marshal.dump((view, launch.pass_fds, root, hello), file)
    os.lseek(fd, 0, os.SEEK_SET)
    # Anew, because a fork of a process with the modules that were needed until now takes twice as long.
    packages = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.execv(sys.executable, [sys.executable, "-IS", "-c", _START, packages, str(fd)])  # noqa: S606


def own_directories(steps: Sequence[Step]) -> set[str]:
    """The directories that a task could write to and no other task sees."""
    return {step.target for step in steps if step.kind == "tmpfs"} - {
        step.target for step in steps if step.kind == "remount-ro"
    }
