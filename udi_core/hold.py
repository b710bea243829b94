"""Holds: an image stays mounted on this node for as long as a Slurm job lasts, whether a task is in it or not.

A hold is a process, ``sleep`` for the rest of the job, that has the lease of the mount.  So nothing else need know
of holds, and what ends a process ends them: Slurm at the end of the step that made one, the epilog, a reboot, the
end of the job's time where there is no epilog.

Layout below the node directory::

    holds/<job>/<hex of the image>     "PID STARTED ROOT", STARTED in clock ticks since boot
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping

from udi_core import _process
from udi_core.backends import start_time
from udi_core.config import Config
from udi_core.errors import UsageError
from udi_core.mount import MountedImage

#: Seconds that a hold lasts where Slurm does not say when the job ends.
LONGEST = 86400.0


def check_job(job: str) -> str:
    """A job's id, if it is one.

    Raises:
        UsageError: it is not.
    """
    if not (job.isascii() and job.isdigit()):
        raise UsageError(
            "An image is held for a Slurm job, and there is none",
            f"{job!r} is no job's id." if job else "SLURM_JOB_ID is not set.",
            "Leave --hold out, or name the job: --job=ID.",
        )
    return job


def seconds_left(environ: Mapping[str, str], now: float) -> float:
    """How long the job will last at most."""
    end = environ.get("SLURM_JOB_END_TIME", "")
    return max(1.0, float(end) - now) if end.isdigit() else LONGEST


class Holds:
    """The holds of one user on this node."""

    def __init__(self, config: Config) -> None:
        self._base = os.path.join(config.node_dir, "holds")

    def hold(self, mounted: MountedImage, job: str, environ: Mapping[str, str]) -> None:
        """Hold an image for a job; a second hold of a job on one image does nothing."""
        path = os.path.join(self._base, job, mounted.image.digest.rpartition(":")[2])
        if _alive(path):
            return
        seconds = str(int(seconds_left(environ, time.time())) + 1)
        process = _process.spawn(
            [_process.require_tool("sleep", reason="hold an image for a job"), seconds],
            pass_fds=mounted.fds,
            stdin=_process.DEVNULL,
            stdout=_process.DEVNULL,
            stderr=_process.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(path + ".part", "w") as file:
            file.write(f"{process.pid} {start_time(process.pid)} {mounted.root}")
        os.rename(path + ".part", path)
        process.returncode = 0  # it outlives this process on purpose, which is no reason for a ResourceWarning

    def jobs(self) -> dict[str, list[str]]:
        """The roots of the mounts that each job holds."""
        found: dict[str, list[str]] = {}
        for job in _listdir(self._base):
            for name in _listdir(os.path.join(self._base, job)):
                pid, root = _read(os.path.join(self._base, job, name))
                if pid:
                    found.setdefault(job, []).append(root)
        return found

    def release(self, job: str | None = None) -> None:
        """End the holds of a job, or of all jobs; idempotent.  What is dead already goes in any case."""
        for name in _listdir(self._base):
            directory = os.path.join(self._base, name)
            for image in _listdir(directory):
                path = os.path.join(directory, image)
                if job in (None, name):
                    _end(path)
                elif _alive(path):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            with contextlib.suppress(OSError):  # one that lives, or one that was made this moment
                os.rmdir(directory)
        with contextlib.suppress(OSError):
            os.rmdir(self._base)


def _read(path: str) -> tuple[int, str]:
    """The pid of a living hold, or 0, and the root of what it holds."""
    try:
        with open(path) as file:
            pid, started, root = file.read().split(" ", 2)
    except (OSError, ValueError):
        return 0, ""
    # A pid alone may belong to another process by now; after a reboot, both numbers may.
    alive = pid.isdigit() and start_time(int(pid)) == int(started) and _is_sleep(int(pid))
    return int(pid) if alive else 0, root


def _is_sleep(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.path.basename(file.read().split(b"\0")[0]) == b"sleep"
    except OSError:
        return False


def _alive(path: str) -> bool:
    return _read(path)[0] > 0


def _end(path: str) -> None:
    pid, _ = _read(path)
    if not pid:
        return
    try:
        # By descriptor, so that no other process is meant even if this one ends now.
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _read(path)[0] == pid:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            _wait(handle)
    finally:
        os.close(handle)


def _wait(handle: int) -> None:
    """Wait until the kernel has closed the descriptors of a process that was killed."""
    import select

    select.select([handle], [], [], 10.0)


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
