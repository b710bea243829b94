"""In Snakemake's own process: jobs that say the same but for the last word share a sandbox that stands.

Snakemake starts ``bash -c "apptainer exec … IMAGE bash -c 'the rule'"`` for each job.  The front repeats a launch fast,
but still that takes three programs and a new sandbox.  Where the hook package runs, jobs of a kind, but for the first
few, go to processes that wait in the image (:mod:`udi_core.standing`).

Snakemake notices nothing.  Its command lines are made, logged and reported as ever; only the call that would start one
answers with another process: its child as well, with the same streams, environment, directory and exit status.  Before
each job it is asked whether the files are what they were.  What is in doubt is left to the front, which says what is
wrong; and so is everything while a sandbox is being built.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import os
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from types import ModuleType
from typing import Any

from udi_core import write_record
from udi_snakemake.activation import PROGRAMS, STAND, SWITCH, front_directory
from udi_snakemake.standing import Job, NotStarted, Sandbox

#: How many stand at once: one for each image, number of threads and set of options.
_MOST = 16
_MOST_KINDS = 1000
#: The job of a kind that makes a sandbox worth its start, which takes as long as ten jobs by the front.  A process on a
#: node of a cluster often has one job only.
_WORTH = 5
#: Seconds before what failed, or was too early, is tried again.
_PAUSE, _SOON = 60.0, 2.0
#: Seconds for which lines of the run record are gathered.
_MOMENT = 1
#: Seconds that the end of the program waits for theirs.
_PATIENCE = 10
#: Text that every shell reads as it stands, quotes apart.
_PLAIN = re.compile(r"""[\w '"@%+=:,./-]*""")
#: What Snakemake says to subprocess.Popen; of a call that says more nothing is known.
_KNOWN = {"bufsize", "shell", "stdout", "universal_newlines", "close_fds", "executable", "env"}


class Asked(str):
    """A command line, with the part in which jobs of a kind are alike and the word in which they differ."""

    before: str
    last: str


def split(text: str, last: str) -> str:
    """``text`` as an :class:`Asked`, if it is a front's command line that ends with ``last`` and is plain before it."""
    quoted = "'" + last.replace("'", r"'\''") + "'"
    before = text.removesuffix(quoted)
    words = before.split(None, 1) or [""]
    if not before.endswith(" -c ") or words[0] not in PROGRAMS or not _PLAIN.fullmatch(before):
        return text
    if f" exec --home {os.getcwd()!r} " not in before:
        return text
    asked = Asked(text)
    asked.before, asked.last = before, last
    return asked


class _Kind:
    """Jobs that differ in the last word only: how many there were, and where the next one starts."""

    def __init__(self) -> None:
        self.jobs = 0
        self.sandbox: Sandbox | None = None
        self.building = False
        self.not_before = 0.0


class Kinds:
    """Starts jobs for :mod:`snakemake.shell` where a sandbox stands.  Any thread may call it."""

    def __init__(self, subprocess: ModuleType) -> None:
        self._subprocess = subprocess
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._kinds: dict[Hashable, _Kind] = {}
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lines: list[Callable[[], None]] = []
        self._building: Any = None
        self._ended = False

    def start(self, asked: Asked, options: Mapping[str, Any]) -> Job | None:
        """Start a job; None if it has to be started in the other way.

        Raises:
            OSError: the sandbox was lost at the moment when a job began in it.
        """
        env = options.get("env")
        # In a process that was forked off, jobs would be somebody else's children.
        if self._ended or os.getpid() != self._pid or not isinstance(env, dict) or not _usual(asked, options, env):
            return None
        with self._lock:
            # The directory is in it too, as --home.
            key = asked.before, options.get("executable"), frozenset(env.items())
            kind = self._kinds.pop(key, None) or _Kind()
            self._kinds[key] = kind  # the latest is the last
            kind.jobs += 1
            sandbox = kind.sandbox
            if sandbox is not None and not sandbox.fresh():
                self._let_go(kind)
                sandbox = None
            if sandbox is None:
                if kind.jobs >= _WORTH and not kind.building and time.monotonic() >= kind.not_before:
                    kind.building = True
                    self._later(
                        functools.partial(self._build, kind, asked, options.get("executable"), env, os.getcwd())
                    )
                return None
        began = time.time()
        try:
            job = self._start_in(sandbox, asked, options)
        except (NotStarted, OSError) as error:
            with self._lock:
                if kind.sandbox is sandbox:
                    self._let_go(kind)
                    kind.not_before = time.monotonic() + _PAUSE
            if isinstance(error, NotStarted):
                return None
            raise
        job.at_end = functools.partial(self._note, sandbox, began, time.time() - began)
        return job

    def _note(self, sandbox: Sandbox, began: float, setup: float, status: int) -> None:
        """Lines of the run record are written later and together: Snakemake shall know at once that the job ended."""
        seconds = time.time() - began - setup
        with self._lock:
            self._lines.append(
                functools.partial(write_record, *sandbox.record, start=began, setup=setup, seconds=seconds, exit=status)
            )
            if len(self._lines) > 1:
                return
        timer = threading.Timer(_MOMENT, self._write_lines)
        timer.daemon = True
        timer.start()

    def _write_lines(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        for line in lines:
            line()

    def _start_in(self, sandbox: Sandbox, asked: Asked, options: Mapping[str, Any]) -> Job:
        stdout = options.get("stdout")
        if stdout != self._subprocess.PIPE:
            return sandbox.start(asked, asked.last, None if stdout is None else stdout.fileno())
        reader, writer = os.pipe()
        try:
            job = sandbox.start(asked, asked.last, writer)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        job.stdout = open(reader, "r" if options.get("universal_newlines") else "rb")
        return job

    def close(self) -> None:
        """End all sandboxes, and wait for that: whoever waits for this process finds the images unused."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._ended = True
            for kind in self._kinds.values():
                self._let_go(kind)
            if self._building is not None:
                self._building.kill()
            done = threading.Event()
            self._later(done.set)
        done.wait(_PATIENCE)
        self._write_lines()

    def _build(self, kind: _Kind, asked: Asked, executable: str | None, env: Mapping[str, str], cwd: str) -> None:
        """In the thread: have a front stand instead of starting a job."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._lock:
            if self._ended:
                return
            self._building = process = self._subprocess.Popen(  # noqa: S604 -- the text and the shell are Snakemake's
                str(asked),
                shell=True,
                executable=executable,
                cwd=cwd,
                env={**env, STAND: "1"},
                stdin=theirs,
                stderr=self._subprocess.DEVNULL,  # what is wrong, the next job will say
            )
        sandbox, pause = None, _PAUSE
        try:
            sandbox = Sandbox(process, ours)
        except (OSError, ValueError):
            ours.close()
            process.wait()
        if sandbox is not None and (self._ended or not sandbox.settled()):
            sandbox.close()
            sandbox, pause = None, _SOON
        with self._lock:
            kind.sandbox, kind.building, self._building = sandbox, False, None
            kind.not_before = time.monotonic() + pause
            self._limit()

    def _limit(self) -> None:
        standing = [kind for kind in self._kinds.values() if kind.sandbox is not None]
        for kind in standing[: max(0, len(standing) - _MOST)]:
            self._let_go(kind)
        for key in list(self._kinds)[: max(0, len(self._kinds) - _MOST_KINDS)]:
            if self._kinds[key].sandbox is None and not self._kinds[key].building:
                del self._kinds[key]

    def _let_go(self, kind: _Kind) -> None:
        if kind.sandbox is not None:
            self._later(kind.sandbox.close)
        kind.sandbox = None
        kind.not_before = 0.0

    def _later(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            # One thread starts all of them and never ends: what dies with its parent dies with the parent's thread.
            self._thread = threading.Thread(target=self._work, name="udi-sandboxes", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        self._todo.put(work)

    def _work(self) -> None:
        while True:
            with contextlib.suppress(Exception):
                self._todo.get()()


def _usual(asked: Asked, options: Mapping[str, Any], env: Mapping[str, str]) -> bool:
    """Whether Snakemake would start a shell that finds this installation's front first, and no ranks by it."""
    return (
        options.keys() <= _KNOWN
        and options.get("shell") is True
        and env.get(SWITCH) == "1"
        and not ("SLURM_JOB_ID" in env and "srun" in asked.last)
        and env.get("PATH", "").partition(os.pathsep)[0] == front_directory()
    )


def install() -> bool:
    """Have Snakemake's shell ask us first; returns whether it does.

    Only a Snakemake that is put together like the ones that are known is touched; with another the front does it all.
    """
    shell, containers = sys.modules.get("snakemake.shell"), sys.modules.get("snakemake.deployment.singularity")
    subprocess, make = getattr(shell, "sp", None), getattr(containers, "shellcmd", None)
    if (
        shell is None
        or containers is None
        or getattr(shell, "singularity", None) is not containers
        or not isinstance(subprocess, ModuleType)
        or make is None
        or list(inspect.signature(make).parameters)[:2] != ["img_path", "cmd"]
        or not hasattr(os, "pidfd_open")
    ):
        return False
    kinds, start = Kinds(subprocess), subprocess.Popen

    @functools.wraps(make)
    def shellcmd(img_path: Any, cmd: str, *args: Any, **settings: Any) -> str:
        return split(make(img_path, cmd, *args, **settings), cmd)

    def popen(args: Any, *rest: Any, **options: Any) -> Any:
        job = kinds.start(args, options) if isinstance(args, Asked) and not rest else None
        return start(args, *rest, **options) if job is None else job

    seen_by_shell = ModuleType(subprocess.__name__, subprocess.__doc__)
    vars(seen_by_shell).update(vars(subprocess), Popen=popen)
    vars(containers)["shellcmd"], vars(shell)["sp"] = shellcmd, seen_by_shell
    return True
