"""Images of jobs that wait in Slurm's queue: marked as used in the store, so that they are there when a job starts.

A mark carries the name of the cluster and the job's id.  It ends with the job, whatever ends that: whoever is about to
remove images asks Slurm which of its user's jobs there still are (:func:`review`).  Where Slurm cannot be asked, on
another cluster with the same store or by another user, a mark counts for :data:`udi_core.store.STALE_JOB` seconds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from udi_core import _process
from udi_core.errors import UdiError
from udi_core.store import JOB, ImageStore

# What sbatch prints, and what it prints with --parsable (sbatch(1)).
_SUBMITTED = re.compile(r"(?:Submitted batch job )?(?P<job>\d+)(?:(?: on cluster |;)(?P<cluster>\S+))?\s*")
_CLUSTER = re.compile(r"(?m)^ClusterName\s*=\s*(\S+)")


@contextmanager
def submitting(store: ImageStore, digests: Iterable[str]) -> Iterator[Submission]:
    """Marks images for the time of a submission, and from then on for the job that :class:`Submission` was told of."""
    submission = Submission(store, tuple(dict.fromkeys(digests)))
    try:
        yield submission
    finally:
        submission.end()


class Submission:
    """A job that is being submitted."""

    def __init__(self, store: ImageStore, digests: tuple[str, ...]) -> None:
        self._store = store
        self._digests = digests
        self._name = f"submission.{os.uname().nodename}.{os.getpid()}.{time.time_ns()}"
        for digest in digests:
            store.mark_use(digest, self._name)

    def hear(self, line: str) -> None:
        """Look at a line that sbatch said: it may be the job's id."""
        found = _SUBMITTED.fullmatch(line)
        if found:
            try:
                cluster = found["cluster"] or _own_cluster()
            except UdiError:  # the job is submitted all the same
                cluster = "unknown"
            for digest in self._digests:
                self._store.mark_use(digest, f"{JOB}{cluster}.{found['job']}.{os.geteuid()}")

    def end(self) -> None:
        for digest in self._digests:
            self._store.unmark_use(digest, self._name)


def review(store: ImageStore) -> None:
    """Renew the marks of this user's jobs on this cluster that there still are, and remove those of other jobs."""
    marks = [(digest, name) for digest, name in store.uses() if name.startswith(JOB)]
    if not marks or _process.find_tool("squeue") is None:
        return
    # Asked after the marks were read: a job that is submitted meanwhile is not missed.
    try:
        cluster, jobs = _own_cluster(), _own_jobs()
    except UdiError:  # no controller that answers
        return
    for digest, name in marks:
        where, job, uid = ["", "", *name.removeprefix(JOB).rsplit(".", 2)][-3:]
        if (where, uid) == (cluster, str(os.geteuid())):
            if job in jobs:
                store.mark_use(digest, name)
            else:
                store.unmark_use(digest, name)


def _own_cluster() -> str:
    scontrol = _process.require_tool("scontrol", reason="ask Slurm for the cluster's name")
    found = _CLUSTER.search(_process.run([scontrol, "show", "config"]).stdout.decode(errors="replace"))
    return found[1] if found else ""


def _own_jobs() -> set[str]:
    squeue = _process.require_tool("squeue", reason="ask Slurm for jobs")
    # The id of each job, and of the array that it belongs to; finished ones are not shown (squeue(1), --states).
    said = _process.run([squeue, "--noheader", f"--user={os.geteuid()}", "--format=%A %F"]).stdout.decode()
    return set(said.split())
