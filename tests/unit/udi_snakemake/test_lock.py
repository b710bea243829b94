"""The lock file: found where a run looks, read back, and refused when damaged."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from udi_snakemake import lock
from udi_snakemake.lock import Lock, LockedImage
from udi_snakemake.pointer import Pointer
from udi_snakemake.resolving import agrees

from udi_core.errors import ConfigError

BASH = "docker://docker.io/library/bash:latest"


def test_round_trip_and_form(tmp_path: Path) -> None:
    path = str(tmp_path / "udi.lock")
    written = Lock(
        path=path,
        images={
            "docker://ghcr.io/z:1": LockedImage(digest="sha256:" + "c" * 64),
            BASH: LockedImage(digest="sha256:" + "a" * 64, images={"linux/amd64": "sha256:" + "b" * 64}),
        },
    )
    lock.dump(written)
    assert lock.load(path) == written
    text = Path(path).read_text()
    assert text.index(BASH) < text.index("ghcr.io")
    assert text.endswith("}\n")
    assert os.listdir(tmp_path) == ["udi.lock"]


def test_where_a_run_looks(tmp_path: Path) -> None:
    assert lock.find(str(tmp_path), {}) is None
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow" / "udi.lock").touch()
    assert lock.find(str(tmp_path), {}) == str(tmp_path / "workflow" / "udi.lock")
    (tmp_path / "udi.lock").touch()
    assert lock.find(str(tmp_path), {}) == str(tmp_path / "udi.lock")
    assert lock.find(str(tmp_path), {"UDI_LOCK": "/other"}) == "/other"
    assert lock.find(str(tmp_path), {"UDI_LOCK": ""}) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"udi-lock": 2, "images": {}}', '{"udi-lock": 1, "images": {"a": {}}}', "null"]
)
def test_damaged_lock_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "udi.lock"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"udi\.lock"):
        lock.load(str(path))


def test_an_absent_lock_file_that_was_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        lock.load(str(tmp_path / "absent"))


def test_what_agrees_with_a_lock() -> None:
    one, other, index = ("sha256:" + letter * 64 for letter in "abc")
    single = Pointer(reference=BASH, digest=one, store="/s")
    several = replace(single, images={"v3": other, "default": one}, index=index)
    assert agrees(single, LockedImage(digest=one))
    assert agrees(single, LockedImage(digest=index, images={"linux/amd64": one}))
    assert not agrees(single, LockedImage(digest=index, images={"linux/amd64": other}))
    assert agrees(several, LockedImage(digest=index))
    # An index that has moved may still share an image with this one; and one image for all nodes may be locked.
    assert not agrees(several, LockedImage(digest=other, images={"linux/amd64": one}))
    assert not agrees(several, LockedImage(digest=one))
