"""Images over Parsl's WorkQueueExecutor and TaskVineExecutor.

Their package, ndcctools, is on conda-forge only, so a machine without it skips this, in CI too; see
docs/parsl/executors.md for what was tried.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl import bash_app, python_app
from parsl.config import Config
from parsl.providers import LocalProvider
from udi_parsl import UdiExecutorMixin, image
from udi_parsl.images import RESOLVER

if not (find_spec("ndcctools") and shutil.which("work_queue_worker") and shutil.which("vine_worker")):
    pytest.skip("ndcctools is not installed", allow_module_level=True)

from parsl.executors import WorkQueueExecutor
from parsl.executors.taskvine import TaskVineExecutor, TaskVineManagerConfig

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "apt-get")


class WorkQueue(UdiExecutorMixin, WorkQueueExecutor):
    pass


class TaskVine(UdiExecutorMixin, TaskVineExecutor):
    pass


def provider() -> LocalProvider:
    path = ":".join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return LocalProvider(init_blocks=1, max_blocks=1, worker_init=f"export PYTHONPATH={path}")


def work_queue(reference: str) -> WorkQueue:
    return WorkQueue(label="queue", port=0, autolabel=False, provider=provider(), image=reference)


def task_vine(reference: str) -> TaskVine:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        manager = TaskVineManagerConfig(address="127.0.0.1", port=free.getsockname()[1])
    return TaskVine(
        label="vine", worker_launch_method="provider", manager_config=manager, provider=provider(), image=reference
    )


@pytest.fixture(params=[work_queue, task_vine])
def executor(
    request: pytest.FixtureRequest,
    udi_env: dict[str, str],
    trixie_image: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[None]:
    for key, value in udi_env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    RESOLVER.forget()
    make: Callable[[str], Any] = request.param
    with contextlib.ExitStack() as stack:
        stack.callback(parsl.clear)
        stack.enter_context(parsl.load(Config(executors=[make(trixie_image)], run_dir="runinfo", strategy="none")))
        yield


class Track:
    """Of the user's script: no image has it."""

    def __init__(self, length: int) -> None:
        self.length = length


def longer(track: Any) -> Any:
    return type(track)(track.length + 1)


def python(value: int) -> tuple[int, int]:
    import sys

    if value < 0:
        raise KeyError("negative")
    return sys.version_info[1], value


def command(stdout: str = "out.txt") -> str:
    return ". /etc/os-release && echo $VERSION_CODENAME"


def test_apps_run_in_their_images(executor: None, base_image: str, nopython_image: str) -> None:
    plain, own = python_app(python), image(base_image)(python_app(python))
    assert [each.result() for each in (plain(1), own(2))] == [(13, 1), (11, 2)]
    with pytest.raises(KeyError, match="negative") as caught:
        plain(-1).result()
    assert "in python" in str(caught.value.__cause__)
    moved = python_app(longer)(Track(1)).result()
    assert type(moved) is Track and moved.length == 2
    assert image(nopython_image)(bash_app(command))().result() == 0
    assert Path("out.txt").read_text() == "bookworm\n"
