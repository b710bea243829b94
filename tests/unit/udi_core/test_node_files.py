"""Copies of the store's records on the node: used while the original is the same, and by nobody else's leave."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from udi_core.node_files import forget, read_near, trusted


@pytest.fixture
def near(tmp_path: Path) -> str:
    (tmp_path / "node").mkdir(0o700)
    return f"{tmp_path}/node"


def the_copy(near: str) -> Path:
    (copy,) = (path for path in Path(near, "seen").iterdir() if not path.suffix)
    return copy


def put(path: Path, content: str) -> str:
    part = path.with_suffix(".part")
    part.write_text(content)
    part.rename(path)
    return str(path)


def test_a_copy_is_read_in_place_of_the_original(near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "record", "one\ntwo\n")
    assert read_near(path, near) == b"one\ntwo\n"
    opened: list[str] = []

    def spy(name: str, mode: str) -> IO[bytes]:
        opened.append(name)
        return os.fdopen(os.open(name, os.O_RDONLY), mode)

    monkeypatch.setattr(
        "builtins.open", lambda name, mode: opened.append(str(name)) or os.fdopen(os.open(name, 0), mode)
    )
    assert read_near(path, near) == b"one\ntwo\n"
    assert path not in opened


def test_a_replaced_original_is_read_again(near: str, tmp_path: Path) -> None:
    path = put(tmp_path / "record", "one")
    read_near(path, near)
    put(tmp_path / "record", "two")  # as many bytes
    assert read_near(path, near) == b"two"
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        read_near(path, near)


def test_a_node_directory_is_made_private(tmp_path: Path) -> None:
    path = put(tmp_path / "record", "one")
    assert read_near(path, "") == b"one"
    assert sorted(os.listdir(tmp_path)) == ["record"]
    assert read_near(path, f"{tmp_path}/absent") == b"one"
    assert os.stat(tmp_path / "absent").st_mode & 0o777 == 0o700
    assert read_near(path, "/proc/absent") == b"one"
    with pytest.raises(FileNotFoundError):
        read_near(f"{tmp_path}/gone", f"{tmp_path}/other")
    assert not (tmp_path / "other").exists()


def test_of_many_at_once_one_reads_the_original(near: str, tmp_path: Path) -> None:
    path = put(tmp_path / "record", "one")
    program = f"from udi_core.node_files import read_near; print(read_near({path!r}, {near!r}))"
    trace = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with ThreadPoolExecutor(8) as pool:
        run = [sys.executable, "-c", program]
        done = [pool.submit(subprocess.check_output, run, env=trace, text=True) for _ in range(8)]
        assert {each.result() for each in done} == {"b'one'\n"}
    assert len(os.listdir(f"{near}/seen")) == 2, "the copy and its lock"


def test_a_directory_that_others_can_write_to_is_not_used(near: str, tmp_path: Path) -> None:
    path = put(tmp_path / "record", "one")
    read_near(path, near)
    copy = the_copy(near)
    copy.write_bytes(copy.read_bytes().replace(b"\none", b"\nbad"))
    os.chmod(near, 0o770)
    assert not trusted(near)
    assert read_near(path, near) == b"one"


@pytest.mark.parametrize("content", [b"", b"\n", b"nonsense", b"\xff\xfe\n\x00"])
def test_a_damaged_copy_is_made_anew(near: str, tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "record", "one")
    read_near(path, near)
    copy = the_copy(near)
    copy.write_bytes(content)
    assert read_near(path, near) == b"one"
    assert copy.read_bytes().endswith(b"\none")


def test_forgetting(near: str, tmp_path: Path) -> None:
    read_near(put(tmp_path / "record", "one"), near)
    forget(near)
    forget(near)
    assert os.listdir(near) == []
