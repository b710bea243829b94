"""The parts of mounting that need no mount."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from udi_core import loop
from udi_core.backends import kernel, start_time
from udi_core.errors import PolicyError
from udi_core.mount import _scopes
from udi_core.node_files import _file_system


@pytest.mark.parametrize(
    ("environ", "scopes"),
    [
        ({}, ("node",)),
        ({"SLURM_JOB_ID": "12"}, ("node", "job-12")),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3"}, ("node", "job-12", "job-12.3")),
        ({"SLURM_STEP_ID": "3"}, ("node",)),
        ({"SLURM_JOB_ID": "../x", "SLURM_STEP_ID": "3"}, ("node",)),
    ],
)
def test_scopes(environ: dict[str, str], scopes: tuple[str, ...]) -> None:
    assert _scopes(environ) == scopes


def test_structures_have_the_kernel_s_size() -> None:
    assert (loop._INFO.size, loop._CONFIG.size) == (232, 304)


def test_a_start_time_tells_processes_apart() -> None:
    assert start_time(os.getpid()) > 0
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        assert start_time(other.pid) >= start_time(os.getpid())
        other.kill()
    assert start_time(other.pid) == 0


def test_who_could_have_written_a_file(tmp_path: Path) -> None:
    file = tmp_path / "image.squashfs"
    file.write_bytes(b"x")
    file.chmod(0o644)
    owners = (str(os.getuid()),)
    kernel.check_trusted(str(file), owners)
    (tmp_path / "link").symlink_to(file)
    kernel.check_trusted(str(tmp_path / "link"), owners)
    file.chmod(0o664)
    with pytest.raises(PolicyError, match="0664"):
        kernel.check_trusted(str(file), owners)
    kernel.check_trusted(str(file), ("*",))
    file.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(PolicyError, match="0777"):
        kernel.check_trusted(str(file), owners)
    tmp_path.chmod(0o1777)
    kernel.check_trusted(str(file), owners)


def test_the_type_of_a_file_system() -> None:
    assert _file_system("/proc") == "proc"
