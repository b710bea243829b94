"""Which word of a launcher's command line is the program, and what comes before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from udi_core.ranks import entering

SRUN = """#!/bin/sh
cat <<END
  -n, --ntasks=ntasks         number of tasks to run
      --mpi=type              type of MPI being used
      --multi-prog            if set the program name specified is the file
END
"""


@pytest.mark.parametrize(
    ("called", "started"),
    [
        ("-n 4 prog -n 5", "-n 4 ENTER prog -n 5"),
        ("--mpi=pmi2 -n4 /opt/prog", "--mpi=pmi2 -n4 ENTER /opt/prog"),
        ("-n 4 -- prog", "-n 4 -- ENTER prog"),
        # Other images are asked for by udi, which is the node's; a file of programs and no program are srun's matter.
        ("-n 4 udi run other:1 -- prog", "-n 4 udi run other:1 -- prog"),
        ("--multi-prog programs.conf", "--multi-prog programs.conf"),
        ("--help", "--help"),
        ("", ""),
    ],
)
def test_srun_starts_its_program_in_the_image(tmp_path: Path, called: str, started: str) -> None:
    srun = tmp_path / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)
    assert entering(["ENTER"])("srun", [str(srun), *called.split()]) == [str(srun), *started.split()]


def test_other_programs_are_started_as_they_are() -> None:
    assert entering(["ENTER"])("squeue", ["/bin/squeue", "-n", "prog"]) == ["/bin/squeue", "-n", "prog"]
