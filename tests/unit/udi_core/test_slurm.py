"""Where Slurm's options end."""

from __future__ import annotations

import pytest

from udi_core.slurm import options_with_value, program_at

HELP = """Usage: srun [OPTIONS(0)... [executable(0) [args(0)...]]]

Parallel run options:
  -A, --account=name          charge job to specified account
      --bb=<spec>             burst buffer specifications
      --container             Path to OCI container bundle
  -I, --immediate[=secs]      exit if resources not available in "secs"
  -k, --no-kill               do not kill job on node failure
  -n, --ntasks=ntasks         number of tasks to run
      --ntasks-per-node=n     number of tasks to invoke on each node
  -N, --nodes=N               number of nodes on which to run (N = min[-max])
      --exclusive[=user]      for job allocation, this allocates nodes in
                              --mem >= --mem-per-cpu if --mem is specified.
  -v, --verbose               verbose mode (multiple -v's increase verbosity)
  -B  --extra-node-info=S[:C[:T]]  combine request of sockets per node
"""


@pytest.mark.parametrize(
    ("arguments", "rest"),
    [
        ("prog -n 3", "prog -n 3"),
        ("-N2 prog", "prog"),
        ("-N 2 prog", "prog"),
        ("-kvN 2 prog", "prog"),
        ("-kN2 prog", "prog"),
        ("--nodes=2 prog", "prog"),
        ("--nodes 2 prog", "prog"),
        ("--ntasks 2 --ntasks-per-node 1 prog --nodes 7", "prog --nodes 7"),
        ("--acc me prog", "prog"),
        ("--immediate prog", "prog"),
        ("-I prog", "prog"),
        ("--exclusive prog", "prog"),
        ("--container /bundle prog", "prog"),
        ("-B 2 prog", "prog"),
        ("-N 2 -- prog -N", "prog -N"),
        ("--no-kill --from-a-later-release prog", "prog"),
        ("-", "-"),
        ("-N 2", ""),
        ("--nodes", ""),
        ("", ""),
    ],
)
def test_the_program_is_found(arguments: str, rest: str) -> None:
    words = arguments.split()
    assert words[program_at(words, options_with_value(HELP)) :] == rest.split()
