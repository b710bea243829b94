"""JSON without its package, and files that are parsed once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from udi_core.config import load_config
from udi_core.documents import KEPT, parse_json, parse_once


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, null, true, "x\\n\\u00e9"]}', " [NaN, -Infinity]\n", '"é"', "0"])
def test_json(text: str) -> None:
    assert repr(parse_json(text.encode())) == repr(json.loads(text))


DAMAGED = (b"", b"{", b'{"a": }', b"1 2", b'"\xff"', b"nope", b'{"a": "un')


@pytest.mark.parametrize("data", DAMAGED)
def test_damaged_json(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(data)


def test_damaged_json_where_json_is_not_loaded_yet() -> None:
    """As in a command: the scanner's own exception lives in the package that is not there."""
    program = (
        "import sys; from udi_core.documents import parse_json\n"
        "for data in {}:\n"
        "    for name in [name for name in sys.modules if name.startswith('json')]: del sys.modules[name]\n"
        "    try: parse_json(data)\n"
        "    except ValueError: continue\n"
        "    raise SystemExit(repr(data))\n"
    )
    done = subprocess.run([sys.executable, "-c", program.format(DAMAGED)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


class Counted:
    """A parser that counts, and whose result can be chosen."""

    def __init__(self, value: Any = None) -> None:
        self.calls = 0
        self.value = value

    def __call__(self, data: bytes) -> Any:
        self.calls += 1
        return data.decode() if self.value is None else self.value


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir(0o700)
    (tmp_path / "file").write_text("one")
    return tmp_path


def read(place: Path, parse: Counted) -> Any:
    return parse_once(str(place / "file"), str(place / "kept"), parse)


def test_a_file_is_parsed_once_until_it_changes(place: Path) -> None:
    parse = Counted()
    assert [read(place, parse), read(place, parse), parse.calls] == ["one", "one", 1]
    (kept,) = (place / "kept").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    (place / "file").write_text("two")
    os.utime(place / "file", ns=(0, 0))  # what lies about its time has changed all the same
    assert [read(place, parse), read(place, parse), parse.calls] == ["two", "two", 2]
    (place / "new").write_text("six")
    os.replace(place / "new", place / "file")
    assert [read(place, parse), parse.calls] == ["six", 3]
    with pytest.raises(FileNotFoundError):
        parse_once(str(place / "absent"), str(place / "kept"), parse)


@pytest.mark.parametrize("content", ["", "[]", "[1, 2, 3]", "{", "null"])
def test_what_was_kept_may_be_damaged(place: Path, content: str) -> None:
    parse = Counted()
    read(place, parse)
    (kept,) = (place / "kept").glob(KEPT + "*")
    kept.write_text(content)
    assert read(place, parse) == "one" and parse.calls == 2


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_nothing_is_kept_where_others_may_write(place: Path, mode: int) -> None:
    (place / "kept").chmod(mode)
    parse = Counted()
    assert [read(place, parse), read(place, parse), parse.calls] == ["one", "one", 2]
    assert list((place / "kept").iterdir()) == []


@pytest.mark.parametrize("value", [{1: "a number as key"}, {"a": (1, 2)}, {"a": {1, 2}}])
def test_what_json_cannot_hold_is_not_kept(place: Path, value: Any) -> None:
    parse = Counted(value)
    assert [read(place, parse), read(place, parse), parse.calls] == [value, value, 2]
    assert list((place / "kept").iterdir()) == []


def test_the_configuration_is_read_without_yaml_the_second_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    environ = {"HOME": "/h", "UDI_CONFIG": str(place / "file"), "UDI_NODE_DIR": str(place / "kept")}
    (place / "file").write_text("idle: 7\nvolumes: [/a:/b]\n")
    first = load_config(environ)
    monkeypatch.setattr(yaml, "load", None)
    assert load_config(environ) == first
    assert (first.idle, first.volumes) == (7.0, ("/a:/b",))
