"""Sending an image to the disks of all nodes of a Slurm job: along a tree, so that the store is read once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from udi_core import _process
from udi_core.config import Config
from udi_core.errors import UsageError
from udi_core.store import StoredImage


def broadcast(image: StoredImage, config: Config, environ: Mapping[str, str], program: Sequence[str]) -> int:
    """Have each node of this job hold a checked copy of the image (:mod:`udi_core.copies`); the number of nodes.

    ``program`` is the argv that starts ``udi`` on a node.  Slurm's daemons pass the bytes on, each to some others.

    Raises:
        UsageError: this is no job.
        ToolMissing, ToolFailed: sbcast or srun; a node on which the copy is damaged or there is no room.
    """
    job, nodes = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_JOB_NUM_NODES", "")
    if not (job.isdigit() and nodes.isdigit()):
        raise UsageError(
            "Images are sent to the nodes of a job, and this is none",
            "SLURM_JOB_ID and SLURM_JOB_NUM_NODES are not set.",
            "Use --broadcast in a batch script or in salloc.",
        )
    sbcast = _process.require_tool("sbcast", reason="send an image to the nodes of a job")
    srun = _process.require_tool("srun", reason="check an image on the nodes of a job")
    # Beside the node directory, which need not be there yet, and so on the same file system.  In /tmp, a name that can
    # be foreseen could be a link of somebody else's.
    part = f"{config.node_dir}.{job}.{os.urandom(8).hex()}.part"
    _process.run([sbcast, "--force", image.squashfs, part])
    where = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap", "--kill-on-bad-exit=0"]
    _process.run([srun, *where, *program, "node", "adopt", image.digest, part])
    return int(nodes)
