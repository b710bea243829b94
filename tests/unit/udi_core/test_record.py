"""The run record: whole lines, none lost, and never in a task's way."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from udi_core import record
from udi_core.config import Config, load_config

HEAD = record.head("run", "sha256:ab", "docker:x/y:1", "kernel", 1000, {"SLURMD_NODENAME": "nid7"}, "true")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "node").mkdir(0o700)
    return Config(store="/nonexistent", node_dir=f"{tmp_path}/node", record_dir=f"{tmp_path}/records")


def lines(path: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_line(config: Config) -> None:
    record.write(record.path(config), HEAD, start=1.25, setup=0.0123456789, exit=3)
    record.write(record.path(config), HEAD, task='a "b"\n\u00e9\\', start=2)
    first, second = lines(record.path(config))
    assert first == {
        "by": "run",
        "image": "sha256:ab",
        "reference": "docker:x/y:1",
        "backend": "kernel",
        "node": "nid7",
        "program": "true",
        "uid": 1000,
        "start": 1.25,
        "setup": 0.0123457,
        "exit": 3,
    }
    assert second["task"] == 'a "b"\n\u00e9\\'
    assert os.stat(record.path(config)).st_mode & 0o777 == 0o600


def test_a_shell_can_finish_a_line() -> None:
    assert json.loads(HEAD + ',"start":17.5}')["start"] == 17.5


def test_a_line_is_one_small_write() -> None:
    long = "\U0001f600" * 5000
    line = record.head(*[long] * 4, 0, {"SLURMD_NODENAME": "n", "SLURM_JOB_ID": "1"}, "x" * 5000)
    assert json.loads(line + "}")["program"] == "x" * 512
    plain = record.head(*["y" * 5000] * 4, 0, {"SLURMD_NODENAME": "n" * 5000, "SLURM_JOB_ID": "1"}, "x" * 5000)
    assert len(plain) < 4000


def test_off(tmp_path: Path) -> None:
    off = Config(store="/nonexistent", node_dir=str(tmp_path))
    record.write(record.path(off), HEAD)
    assert list(tmp_path.iterdir()) == []
    environ = {"HOME": "/home/x", "UDI_CONFIG": "/nonexistent", "UDI_SITE_CONFIG": "/nonexistent"}
    assert load_config(environ).record_dir == "/home/x/.local/state/udi/records"
    assert load_config({**environ, "UDI_RECORD_DIR": "off"}).record_dir == ""
    assert load_config({**environ, "UDI_RECORD_DIR": "/r"}).record_dir == "/r"


def test_what_cannot_be_recorded_is_not(config: Config, tmp_path: Path) -> None:
    record.write("/proc/nonexistent/record.jsonl", HEAD)
    open_to_all = tmp_path / "planted"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    record.write(f"{open_to_all}/{record.NAME}", HEAD)
    assert list(open_to_all.iterdir()) == []
    victim = tmp_path / "victim"
    victim.write_text("")
    os.symlink(victim, record.path(config))
    record.write(record.path(config), HEAD)
    assert victim.read_text() == ""


def test_a_first_line_makes_the_node_directory(tmp_path: Path) -> None:
    file = f"{tmp_path}/new/{record.NAME}"
    record.write(file, HEAD)
    assert len(lines(file)) == 1
    assert os.stat(f"{tmp_path}/new").st_mode & 0o777 == 0o700


def test_collecting_while_tasks_write_loses_nothing(config: Config) -> None:
    def work(number: int) -> None:
        for each in range(100):
            record.write(record.path(config), HEAD, task=f"{number}.{each}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        record.collect(config)
    record.collect(config)
    found = [line["task"] for name in os.listdir(config.record_dir) for line in lines(f"{config.record_dir}/{name}")]
    assert sorted(map(str, found)) == sorted(f"{number}.{each}" for number in range(4) for each in range(100))
    assert os.listdir(config.node_dir) == []
    assert record.collect(config) == []


def test_a_record_that_cannot_be_collected_is_the_next_time(config: Config, tmp_path: Path) -> None:
    record.write(record.path(config), HEAD, task="first")
    (tmp_path / "records").write_text("a file, no directory")
    assert record.collect(config) == []
    assert [len(lines(f"{config.node_dir}/{name}")) for name in os.listdir(config.node_dir)] == [1]
    Path(record.path(config) + ".old").write_text(HEAD + ',"task":"second"}\n')  # as of one that has grown long
    record.write(record.path(config), HEAD, task="third")
    (tmp_path / "records").unlink()
    found = record.collect(config)
    assert sorted(str(line["task"]) for path in found for line in lines(path)) == ["first", "second", "third"]
    assert os.listdir(config.node_dir) == []


def test_a_long_record_begins_anew(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_MOST", 1000)
    for _ in range(20):
        record.write(record.path(config), HEAD)
    assert os.path.getsize(record.path(config)) < 1300
    assert os.path.getsize(record.path(config) + ".old") < 1300


def test_a_kept_descriptor_that_others_closed_is_not_written_to(config: Config, tmp_path: Path) -> None:
    record.write(record.path(config), HEAD)
    os.close(record._kept[2])
    with open(tmp_path / "of another", "w+") as other:  # it has the number now
        record.write(record.path(config), HEAD)
        assert other.read() == ""
    assert len(lines(record.path(config))) == 2
