"""Which jobs get a launcher."""

from __future__ import annotations

import pytest
from udi_snakemake.arguments import Action
from udi_snakemake.ranks import wanted

# What the slurm executor leaves of Slurm's variables in a job with the resource mpi, and srun in one without.
MPI_JOB = {"SLURM_JOB_ID": "7"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_PROCID": "0"}
STEP = {**BATCH, "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("verb", "command", "environ", "expected"),
    [
        ("exec", "python script.py", MPI_JOB, True),
        ("exec", "srun -n 4 solver", MPI_JOB, True),
        ("exec", "srun -n 4 solver", BATCH, True),
        ("exec", "solver", BATCH, False),
        ("exec", "srun -n 4 solver", STEP, False),
        ("exec", "srun -n 4 solver", {}, False),
        ("run", "srun -n 4 solver", MPI_JOB, False),
    ],
)
def test_jobs_that_may_start_ranks(verb: str, command: str, environ: dict[str, str], expected: bool) -> None:
    action = Action(verb=verb, image="image.simg", command=("bash", "-c", command))
    assert wanted(action, environ) is expected
