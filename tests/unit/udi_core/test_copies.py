"""Copies of images on a node's own disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from udi_core import copies
from udi_core.errors import CorruptImage, StoreError
from udi_core.image_config import ImageConfig
from udi_core.store import StoredImage

BYTES = b"a squashfs"
IMAGE = StoredImage(
    digest="sha256:" + "a" * 64,
    squashfs="/nonexistent",
    size=len(BYTES),
    squashfs_sha256=hashlib.sha256(BYTES).hexdigest(),
    config=ImageConfig(),
    created="",
    reference="docker:lab/reco:1",
)


def test_a_copy_is_checked_found_and_removed_when_nobody_uses_it(tmp_path: Path) -> None:
    node = str(tmp_path / "node")
    assert copies.find(node, IMAGE.digest) == ""
    for _ in range(2):
        part = tmp_path / "part"
        part.write_bytes(BYTES)
        path = copies.adopt(node, IMAGE, str(part))
        assert not part.exists()
        assert copies.find(node, IMAGE.digest) == path
    assert Path(path).read_bytes() == BYTES
    copies.clean(node, {IMAGE.digest}.__contains__)
    assert copies.find(node, IMAGE.digest) == path
    for _ in range(2):
        copies.clean(node, lambda digest: False)
        assert os.listdir(node) == []


@pytest.mark.parametrize("wrong", [b"", BYTES[:-1], BYTES + b"x"])
def test_a_damaged_copy_is_not_used(tmp_path: Path, wrong: bytes) -> None:
    part = tmp_path / "part"
    part.write_bytes(wrong)
    with pytest.raises(CorruptImage):
        copies.adopt(str(tmp_path), IMAGE, str(part))
    assert os.listdir(tmp_path) == []


def test_a_copy_that_another_node_took_is_missed_in_words(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="another node took it"):
        copies.adopt(str(tmp_path), IMAGE, str(tmp_path / "part"))
