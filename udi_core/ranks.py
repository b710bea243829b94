"""Launchers called from an image: what ``srun`` starts for a task is in the task's image too.

A parallel program is started by the node's launcher, which an image calls through :mod:`udi_core.host_calls`.  On each
node of the step the launcher starts ``udi step`` for each rank, which becomes the program in the image; which image
that is and what surrounds it stand in a variable, so that it is the same for all ranks, and fits each node's kind.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from udi_core import _process
from udi_core.attended import attend
from udi_core.batch import VARIABLE, Job
from udi_core.config import Config
from udi_core.errors import LaunchError, PolicyError, ToolMissing, UdiError
from udi_core.host_calls import HostCalls
from udi_core.mount import MountedImage
from udi_core.programs import PROGRAM
from udi_core.sandbox import Host, LaunchSpec, build, execute
from udi_core.slurm import options_with_value, program_at
from udi_core.waiter import end_as


def calls_for_ranks(config: Config, job: Job) -> HostCalls:
    """Calls to the node for a task of ``job``'s image, in which every program that ``srun`` starts is in that image.

    Raises:
        PolicyError, ToolMissing: as :class:`HostCalls`.
    """
    environ = {**os.environ, VARIABLE: job.encode()}
    return HostCalls(config, environ=environ, rewrite=entering((*PROGRAM, "step")))


def serve_ranks(
    calls: Callable[[], HostCalls],
    spec: LaunchSpec,
    mounted: MountedImage,
    config: Config,
    host: Host,
    began: float,
    *,
    refused: Callable[[UdiError], None] = lambda error: None,
) -> int:
    """Run a task that may call the node's launchers to its end, and end as it did; its exit status.

    Where the site allows no such calls, or the image cannot make them, ``refused`` hears why, and this process becomes
    the task.

    Args:
        calls: makes what serves the task's calls.
        began: as for :func:`udi_core.sandbox.execute`.
    """
    with ExitStack() as stack:
        try:
            served = stack.enter_context(calls())
            launch = served.build(spec, mounted, config, host)
        except (PolicyError, ToolMissing, LaunchError) as error:
            stack.close()
            refused(error)
            execute(build(spec, mounted, config, host), began)
        status = attend(launch, began)
    return end_as(status)


def entering(entry: Sequence[str]) -> Callable[[str, list[str]], list[str]]:
    """What :class:`HostCalls` calls ``rewrite``: the words of ``entry`` come before the program that srun starts."""

    def rewrite(name: str, argv: list[str]) -> list[str]:
        if name != "srun":
            return argv
        at = 1 + program_at(argv[1:], _srun_options(argv[0]))
        # With --multi-prog the word is a file that names programs; udi itself is the node's.
        if at >= len(argv) or os.path.basename(argv[at]) == "udi" or "--multi-prog" in argv[:at]:
            return argv
        return [*argv[:at], *entry, *argv[at:]]

    return rewrite


@functools.cache
def _srun_options(program: str) -> dict[str, bool]:
    return options_with_value(_process.run([program, "--help"]).stdout.decode(errors="replace"))
