"""Marks of jobs that wait: made at submission, renewed while the job is known, gone with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from udi_core.queued import review, submitting
from udi_core.store import STALE_JOB, ImageStore

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    """A store, and a Slurm called ``here`` that knows the jobs named in a file."""
    programs = {
        "scontrol": 'echo "Configuration data"; echo "ClusterName             = here"',
        "squeue": f'cat {tmp_path}/jobs || exit 1; [ "$2" = --user={os.geteuid()} ]',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "jobs").write_text("")
    return ImageStore(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Submitted batch job 17\n", "here.17"),
        ("Submitted batch job 17 on cluster there\n", "there.17"),
        ("17\n", "here.17"),
        ("17;there\n", "there.17"),
        ("sbatch: lua: welcome, your 17th job\n", ""),
        ("\n", ""),
    ],
)
def test_what_sbatch_says(line: str, name: str, store: ImageStore) -> None:
    with submitting(store, [DIGEST, DIGEST]) as submission:
        assert [user.partition(".")[0] for user in store.users(DIGEST)] == ["submission"]
        submission.hear(line)
    assert store.users(DIGEST) == ([f"job.{name}.{os.geteuid()}"] if name else [])


def test_a_cluster_that_does_not_say_its_name(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    with submitting(store, [DIGEST]) as submission:
        submission.hear("Submitted batch job 17\n")
    review(store)
    assert store.users(DIGEST) == [f"job.unknown.17.{os.geteuid()}"]


def test_a_mark_lasts_as_long_as_its_job(store: ImageStore, tmp_path: Path) -> None:
    me, old = os.geteuid(), 1_000_000_000
    names = [
        f"job.here.5.{me}",
        f"job.here.6.{me}",
        f"job.here.7.{me + 1}",
        f"job.there.5.{me}",
        "job.odd",
        "node1.0.node",
    ]
    for name in names:
        os.utime(store.mark_use(DIGEST, name), (old, old))
    (tmp_path / "jobs").write_text("12 12\n15 6\n")  # a task of an array that is job 6
    review(store)
    assert [user for _, user in store.uses()] == sorted(set(names) - {names[0]})
    assert store.users(DIGEST) == [names[1]]  # renewed; of the others nobody has heard for long


def test_where_slurm_does_not_answer_all_stays(store: ImageStore, tmp_path: Path) -> None:
    name = f"job.here.5.{os.geteuid()}"
    path = store.mark_use(DIGEST, name)
    (tmp_path / "jobs").unlink()
    review(store)
    assert store.users(DIGEST, stale=0) == [name]
    aged = os.stat(path).st_mtime - STALE_JOB
    os.utime(path, (aged, aged))
    assert store.users(DIGEST) == []
