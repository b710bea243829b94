"""What of an image's environment gets out to a called program, and what is offered."""

from __future__ import annotations

from pathlib import Path

import pytest

from udi_core.config import Config
from udi_core.errors import PolicyError, ToolMissing
from udi_core.host_calls import HostCalls, available, changed
from udi_core.policy import Policy

NODE = {"PATH": "/node/bin", "HOME": "/home/ada", "SLURM_JOB_ID": "7", "LD_PRELOAD": "/node/lib.so"}
INITIAL = {"PATH": "/image/bin", "HOME": "/home/ada", "SLURM_JOB_ID": "7", "LANG": "C.UTF-8", "PWD": "/a"}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (INITIAL, NODE),
        ({**INITIAL, "SEED": "3"}, {**NODE, "SEED": "3"}),
        ({**INITIAL, "LANG": "de_DE"}, {**NODE, "LANG": "de_DE"}),
        ({key: value for key, value in INITIAL.items() if key != "SLURM_JOB_ID"}, NODE | {"SLURM_JOB_ID": None}),
        ({**INITIAL, "PATH": "/opt/bin", "LD_LIBRARY_PATH": "/opt/lib", "PYTHONPATH": "/p", "PWD": "/b"}, NODE),
    ],
    ids=["nothing changed", "set", "changed", "unset", "files of the image"],
)
def test_what_was_changed_travels(now: dict[str, str], expected: dict[str, str | None]) -> None:
    wanted = {name: value for name, value in expected.items() if value is not None}
    assert changed(NODE, INITIAL, now) == wanted


def test_only_programs_of_the_node_are_offered(tmp_path: Path) -> None:
    for name, mode in (("srun", 0o755), ("sbatch", 0o644)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    assert available(("srun", "sbatch", "squeue", "/bin/sh"), str(tmp_path)) == {"srun": str(tmp_path / "srun")}


def test_a_site_or_a_node_without_programs_says_so(tmp_path: Path) -> None:
    places = {"store": str(tmp_path), "node_dir": str(tmp_path)}
    with pytest.raises(PolicyError, match="does not allow"):
        HostCalls(Config(**places, policy=Policy(host_programs=())))
    with pytest.raises(ToolMissing, match="none of the programs"):
        HostCalls(Config(**places), environ={"PATH": str(tmp_path)})
