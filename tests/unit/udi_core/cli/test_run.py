"""Arguments of ``udi run`` that are read from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from udi_core.cli.run import read_env_file
from udi_core.errors import UsageError


def test_env_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "set")
    monkeypatch.delenv("NOWHERE", raising=False)
    path = tmp_path / "env"
    path.write_bytes(b"# comment\n\nA=b=c\n  B= d \nHERE\nNOWHERE\nODD=\xff\n")
    assert read_env_file(str(path)) == {"A": "b=c", "B": " d ", "HERE": "set", "ODD": "\udcff"}


@pytest.mark.parametrize("text", ["=x\n", "A=b\0c\n"])
def test_malformed_env_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "env"
    path.write_text("A=1\n" + text)
    with pytest.raises(UsageError, match="line 2"):
        read_env_file(str(path))


def test_an_env_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_env_file(str(tmp_path))
