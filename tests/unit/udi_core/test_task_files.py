"""Files of tasks whose end bubblewrap notes: what becomes of them, whatever became of the task."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from udi_core import record, task_files
from udi_core.config import Config

HEAD = '{"by":"run","image":"sha256:ab","node":"n1"'
CHILD = b'{ "child-pid": 7, "mnt-namespace": 4026532177 }\n'


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "node").mkdir(0o700)
    return Config(store="/nonexistent", node_dir=f"{tmp_path}/node", record_dir=f"{tmp_path}/records")


def recorded(config: Config) -> list[dict[str, Any]]:
    path = Path(record.path(config))
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begin(config: Config, start: float = 1000.0, setup: float = 0.5) -> int:
    fd = task_files.begin(record.path(config), HEAD, start=start, setup=setup)
    assert fd >= 0 and os.get_inheritable(fd)
    return fd


def test_a_task_that_ended_becomes_a_line(config: Config) -> None:
    fd = begin(config)
    os.write(fd, CHILD + b'{ "exit-code": 3 }\n')
    os.utime(fd, (999.0, 1002.0))
    task_files.settle(config)  # the descriptor is still open: what was noted is enough
    os.close(fd)
    expected = {"by": "run", "image": "sha256:ab", "node": "n1", "start": 1000, "setup": 0.5, "seconds": 1.5, "exit": 3}
    assert recorded(config) == [expected]
    assert os.listdir(config.node_dir) == [record.NAME]
    task_files.settle(config)
    assert len(recorded(config)) == 1


def test_a_running_task_is_left_alone_and_shown(config: Config) -> None:
    fd = begin(config)
    os.write(fd, CHILD)
    task_files.settle(config)
    assert recorded(config) == []
    (line,) = task_files.running(config)
    assert json.loads(line) == {"by": "run", "image": "sha256:ab", "node": "n1", "start": 1000, "setup": 0.5}
    os.close(fd)  # as kill -9 does
    task_files.settle(config)
    (ended,) = recorded(config)
    assert (ended["exit"], "seconds" in ended) == (-1, False)


def test_the_times_of_the_file_are_those_of_the_task(config: Config) -> None:
    """A shell writes neither: its lines have no start."""
    directory = task_files.prepare(record.path(config))
    path = Path(directory, "12-34")
    path.write_bytes(HEAD.encode() + b"}\n" + CHILD + b'{ "exit-code": 0 }\n')
    os.utime(path, (5000.25, 5001.5))
    assert [json.loads(line)["start"] for line in task_files.running(config)] == [5000.25]
    os.utime(path, (5000.25, 5001.5))
    task_files.settle(config)
    assert [(line["start"], line["seconds"], line["exit"]) for line in recorded(config)] == [(5000.25, 1.25, 0)]


def test_many_that_settle_at_once_write_each_line_once(config: Config) -> None:
    for number in range(200):
        fd = begin(config, start=float(number + 1))
        os.write(fd, CHILD + b'{ "exit-code": 0 }\n')
        os.close(fd)
    threads = [threading.Thread(target=task_files.settle, args=(config,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["start"] for line in recorded(config)) == list(range(1, 201))


def test_so_many_are_settled_that_a_node_is_not_filled(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_files, "_MOST", 5)
    for _ in range(20):
        fd = begin(config)
        os.write(fd, CHILD + b'{ "exit-code": 0 }\n')
        os.close(fd)
    assert len(os.listdir(f"{config.node_dir}/tasks")) <= 6
    task_files.settle(config)
    assert len(recorded(config)) == 20


def test_what_cannot_be_noted_is_not(config: Config, tmp_path: Path) -> None:
    assert task_files.begin("", HEAD, start=1.0, setup=0.0) == -1
    assert task_files.begin("/proc/nonexistent/record.jsonl", HEAD, start=1.0, setup=0.0) == -1
    planted = tmp_path / "planted"
    planted.mkdir()
    planted.chmod(0o777)
    assert task_files.begin(f"{planted}/{record.NAME}", HEAD, start=1.0, setup=0.0) == -1
    assert list(planted.iterdir()) == []
    task_files.settle(Config(store="/nonexistent", node_dir="/nonexistent", record_dir="/nonexistent"))
    # Rubbish is nobody's task; nothing follows a link.
    directory = Path(task_files.prepare(record.path(config)))
    (directory / "empty").write_bytes(b"")
    os.symlink("/etc/passwd", directory / "link")
    task_files.settle(config)
    assert not (directory / "empty").exists()
    assert "root:" not in Path(record.path(config)).read_text()
