"""``resources: mpi="srun"``: what a rule's ``srun`` starts is in the rule's image, on every node of the job.

A rule's whole command runs in its image, the launcher's name in it as well.  The launcher is the node's: it is called
from the image, and starts this front for each rank, with the flags that the job's own front was given.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from udi_core import Config, Host, HostCalls, LaunchSpec, MountedImage, UdiError, entering, serve_ranks
from udi_snakemake.activation import front_directory
from udi_snakemake.arguments import Action


def wanted(action: Action, environ: Mapping[str, str]) -> bool:
    """Whether a job may start ranks: it is in an allocation of Slurm, and not itself in a step of one.

    The slurm executor starts a job that has the resource ``mpi`` in no step, and leaves little more than the id of what
    Slurm has set; its command may be a script that calls srun.  Elsewhere in an allocation the command has to name it.
    """
    if action.verb != "exec" or not environ.get("SLURM_JOB_ID") or "SLURM_STEP_ID" in environ:
        return False
    return "SLURM_JOB_NODELIST" not in environ or any("srun" in word for word in action.command)


def serve(
    spec: LaunchSpec, mounted: MountedImage, config: Config, host: Host, began: float, again: Sequence[str]
) -> int:
    """Run a job that may start ranks; its exit status.

    Where it cannot call srun, which standard error then says, this process becomes the job.
    """
    front = os.path.join(front_directory(), again[0])

    def refused(error: UdiError) -> None:
        print(f"{again[0]} (UDI): this rule cannot call srun: {error.brief}: {error.details}", file=sys.stderr)

    return serve_ranks(
        lambda: HostCalls(config, environ=host.environ, rewrite=entering([front, *again[1:]])),
        *(spec, mounted, config, host, began),
        refused=refused,
    )
