"""Nodes for cells of a notebook: a Parsl of its own, beside any that the notebook itself has loaded.

Found through the entry point group ``udi.nodes``, so that the notebook's magics need not know Parsl.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from parsl.app.app import bash_app, python_app
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SingleNodeLauncher, SrunLauncher
from parsl.providers import LocalProvider, SlurmProvider

from udi_core import ToolFailed, UsageError, find_tool, run
from udi_parsl.decorator import image as decorate
from udi_parsl.nodes import WarmLauncher

_COMMAND_SECONDS = 60  # a busy batch system takes its time to answer


class Nodes:
    """Some nodes of the batch system, or this machine; tasks may be given to them at once, and wait for them."""

    def __init__(
        self,
        count: int,
        *,
        images: Sequence[str] = (),
        partition: str | None = None,
        account: str | None = None,
        constraint: str | None = None,
        walltime: str = "01:00:00",
        workers: int | None = None,
        setup: str = "",
        here: bool = False,
    ) -> None:
        """Ask for nodes; returns before they are there.

        Args:
            images: mounted on each node before its workers start.
            workers: tasks at once on a node; None for one per core.
            setup: shell lines that each node runs first (``module load …``).
            here: work on this machine, even if there is a batch system.

        Raises:
            UsageError: more than one node, and no batch system.
        """
        init = f"export PATH={os.path.dirname(sys.executable)}:$PATH\n{setup}"
        if not here and has_slurm():
            provider: Any = SlurmProvider(
                partition=partition,
                account=account,
                constraint=constraint,
                walltime=walltime,
                nodes_per_block=count,
                init_blocks=1,
                max_blocks=1,
                worker_init=init,
                launcher=WarmLauncher(SrunLauncher(), *images),
                cmd_timeout=_COMMAND_SECONDS,
            )
        elif count == 1:
            provider = LocalProvider(
                init_blocks=1, max_blocks=1, worker_init=init, launcher=WarmLauncher(SingleNodeLauncher(), *images)
            )
        else:
            raise UsageError(
                f"There is no batch system to ask for {count} nodes",
                "Slurm's sinfo gives no answer.",
                "Write --nodes 1.",
            )
        cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "udi", "notebook")
        os.makedirs(cache, exist_ok=True)
        self.count = count
        self._directory = tempfile.mkdtemp(dir=cache)
        self._executor = HighThroughputExecutor(
            label="udi",
            provider=provider,
            max_workers_per_node=workers,
        )
        self._tasks = 0
        self._kernel: Any = DataFlowKernel(
            Config(
                executors=[self._executor],
                run_dir=self._directory,
                strategy="none",
                initialize_logging=False,
                exit_mode="cleanup",
            )
        )

    def ready(self) -> int:
        """How many nodes have begun to work."""
        with contextlib.suppress(Exception):  # the interchange is starting, or has gone
            return len({each["hostname"] for each in self._executor.connected_managers()})
        return 0

    def submit(
        self,
        source: str,
        *,
        image: str,
        python: bool,
        names: Mapping[str, Any],
        volumes: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
    ) -> Future[Any]:
        """Run some lines of Python or shell in an image on one of the nodes.

        The result of Python is the value of its last line, or what it printed if that is no expression; the result of
        shell is what it printed.  ``names`` are variables of the one, and of the environment of the other.
        """
        self._tasks += 1
        env = dict(env or {}) if python else {**(env or {}), **{name: str(value) for name, value in names.items()}}
        kind: Any = python_app(run_lines, self._kernel) if python else bash_app(shell_lines, self._kernel)
        app: Any = decorate(image, volumes=tuple(volumes), env=env, workdir=workdir or "")(kind)
        if python:
            future: Future[Any] = app(source, dict(names))
            return future
        out, err = (os.path.join(self._directory, f"{self._tasks}.{each}") for each in ("out", "err"))
        return Printed(app(source, stdout=out, stderr=err), out, err)

    def close(self) -> None:
        """Give the nodes back; what has not ended is cancelled."""
        self._kernel.cleanup()
        shutil.rmtree(self._directory, ignore_errors=True)


def has_slurm() -> bool:
    """Whether a Slurm answers; its programs alone may be installed anywhere."""
    program = find_tool("sinfo")
    if program is None:
        return False
    try:
        return run([program, "--noheader"], check=False, timeout=_COMMAND_SECONDS).returncode == 0
    except ToolFailed:  # the time was over
        return False


class Printed(Future[str]):
    """What a shell task printed, when it has ended; as little to be cancelled as the task."""

    def __init__(self, task: Any, out: str, err: str) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self.task_record = task.task_record
        self._out, self._err = out, err
        task.add_done_callback(self._finish)

    def _finish(self, task: Future[Any]) -> None:
        error = task.exception()
        if error is None:
            self.set_result(_read(self._out))
        elif hasattr(error, "exitcode"):
            details = "\n".join(_read(self._err).strip().splitlines()[-8:])
            self.set_exception(ToolFailed(f"The task ended with status {error.exitcode}", details))
        else:
            self.set_exception(error)


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def shell_lines(lines: str, stdout: str = "", stderr: str = "") -> str:
    """The bash app: its command is its argument."""
    return lines


def run_lines(source: str, names: dict[str, Any]) -> Any:
    """The Python app; runs in the image, on any Python 3."""
    import ast
    import contextlib
    import io

    tree = ast.parse(source, "cell")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    space = dict(names, __name__="__main__")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), space)  # noqa: S102 - running the user's cell is the point
        if last is not None:
            return eval(compile(ast.Expression(last.value), "cell", "eval"), space)  # type: ignore[attr-defined]  # noqa: S307
    return printed.getvalue()
