"""Holds: processes that keep a mount for a job."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from udi_core.backends import start_time
from udi_core.config import Config
from udi_core.errors import UsageError
from udi_core.hold import LONGEST, Holds, check_job, seconds_left
from udi_core.image_config import ImageConfig
from udi_core.mount import MountedImage
from udi_core.store import StoredImage

IMAGE = StoredImage(
    digest="sha256:" + "a" * 64,
    squashfs="/image.squashfs",
    size=1,
    squashfs_sha256="",
    config=ImageConfig(),
    created="",
    reference="docker:lab/reco:1",
)


def test_time_left() -> None:
    assert seconds_left({"SLURM_JOB_END_TIME": "1500"}, 1000.0) == 500.0
    assert seconds_left({"SLURM_JOB_END_TIME": "1500"}, 2000.0) == 1.0
    assert seconds_left({}, 1000.0) == seconds_left({"SLURM_JOB_END_TIME": "Unknown"}, 1000.0) == LONGEST


@pytest.mark.parametrize("job", ["", "12.batch", "../7", "²"])
def test_what_is_no_job(job: str) -> None:
    with pytest.raises(UsageError, match="there is none"):
        check_job(job)


def test_a_hold_has_the_lease_until_it_is_released(tmp_path: Path) -> None:
    holds = Holds(Config(store="/nonexistent", node_dir=str(tmp_path)))
    reader, writer = os.pipe()  # stands for the lease: who has it can be seen at the other end
    os.set_inheritable(writer, True)
    mounted = MountedImage(IMAGE, "/root of/it", (), writer, "kernel", "", "", (writer,))
    holds.hold(mounted, "7", {})
    holds.hold(mounted, "7", {})
    holds.hold(mounted, "8", {})
    os.close(writer)
    assert holds.jobs() == {"7": ["/root of/it"], "8": ["/root of/it"]}
    holds.release("")
    holds.release("7")
    assert holds.jobs() == {"8": ["/root of/it"]}
    holds.release()
    assert os.read(reader, 1) == b"", "nobody has it any more"
    os.close(reader)
    assert os.listdir(tmp_path) == []
    holds.release()


def test_another_process_with_the_pid_of_a_hold_lives_on(tmp_path: Path) -> None:
    holds = Holds(Config(store="/nonexistent", node_dir=str(tmp_path)))
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        directory = tmp_path / "holds" / "7"
        directory.mkdir(parents=True)
        (directory / "a").write_text(f"{stranger.pid} {start_time(stranger.pid) - 1} /root")
        (directory / "b").write_text(f"{os.getpid()} {start_time(os.getpid())} /root")
        (directory / "c").write_text("damaged")
        assert holds.jobs() == {}
        holds.release("7")
        assert stranger.poll() is None
        assert os.listdir(tmp_path) == []
    finally:
        stranger.kill()
        stranger.wait()
