"""Leases: one holder, dead ones taken over, and a sleeper that wakes up finds out."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from udi_core import lease
from udi_core.errors import LeaseLost


def nobody(holder: str, note: str) -> None:
    pass


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    with lease.acquire(path) or pytest.fail("it was free"):
        assert lease.acquire(path) is None
        assert lease.wait(path, lambda: True, nobody) is None
    with lease.acquire(path) or pytest.fail("it was given up"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b'{"token": 7}', json.dumps({"token": "node9:1:2:3"}).encode()])
def test_what_a_dead_holder_left_is_taken_over(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "lease"
    path.write_bytes(left)
    seen: list[str] = []
    taken = lease.wait(str(path), lambda: False, lambda holder, note: seen.append(holder), patience=0.2, poll=0.01)
    assert taken is not None
    with taken:
        taken.check()
    assert os.listdir(tmp_path) == []


def test_a_holder_that_slept_finds_out_and_leaves_the_other_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    held = lease.acquire(str(path))
    assert held is not None
    with held:
        path.write_text(json.dumps({"token": "another"}))
        with pytest.raises(LeaseLost):
            held.check()
    assert lease.read(str(path)) == {"token": "another"}


def test_a_lease_that_cannot_be_read_is_not_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lease"
    path.write_text("another user's")

    def closed(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(lease, "_raw", closed)
    with pytest.raises(PermissionError):
        lease.wait(str(path), lambda: False, nobody, patience=0.0, poll=0.01)
    assert path.exists()


def test_a_file_system_that_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="not supported"):
        lease.acquire(str(tmp_path / "lease"))
    assert os.listdir(tmp_path) == []
