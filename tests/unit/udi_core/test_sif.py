"""SIF files made by hand after the format's definition, right and wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sif import DATA, descriptor, write
from udi_core.errors import CorruptImage, UnsupportedImage
from udi_core.sif import find_partition


def test_the_primary_partition_is_found(tmp_path: Path) -> None:
    definition, overlay = descriptor(0x4001, size=10), descriptor(0x4004, 2, 4, offset=1, size=1)
    assert find_partition(write(tmp_path / "x.sif", definition, overlay, descriptor(0x4004))) == (DATA, 5000)


@pytest.mark.parametrize("content", [b"", b"hsqs" + bytes(200), b"#!/bin/sh\nSIF_MAGIC\n", bytes(200)])
def test_other_files_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert find_partition(str(tmp_path / "x")) is None


@pytest.mark.parametrize(("file_system", "said"), [(2, "ext3"), (5, "encrypted"), (6, "encrypted"), (77, "unknown")])
def test_other_file_systems_are_unsupported(tmp_path: Path, file_system: int, said: str) -> None:
    with pytest.raises(UnsupportedImage, match=said):
        find_partition(write(tmp_path / "x.sif", descriptor(0x4004, file_system)))


def test_without_a_primary_partition_it_is_unsupported(tmp_path: Path) -> None:
    unused = bytearray(descriptor(0x4004))
    unused[4] = 0
    for path in (write(tmp_path / "a", bytes(unused)), write(tmp_path / "b", descriptor(0x4004, partition=1))):
        with pytest.raises(UnsupportedImage, match="no primary partition"):
            find_partition(path)


@pytest.mark.parametrize("length", [64, 127, 4096, 20_000, DATA + 4999])
def test_what_is_cut_off_is_corrupt(tmp_path: Path, length: int) -> None:
    path = Path(write(tmp_path / "x.sif", descriptor(0x4004)))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptImage, match="cut off"):
        find_partition(str(path))


@pytest.mark.parametrize(
    "changes", [{"total": -1}, {"total": 1 << 40}, {"start": -1}, {"start": 1 << 62}, {"start": 0}]
)
def test_numbers_that_cannot_be_right_are_corrupt(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(CorruptImage, match="cannot be right"):
        find_partition(write(tmp_path / "x.sif", descriptor(0x4004), **changes))


@pytest.mark.parametrize(("offset", "size"), [(-1, 10), (DATA, -1), (DATA, 5001), (1 << 62, 10), (DATA, 0)])
def test_partitions_outside_the_file_are_corrupt(tmp_path: Path, offset: int, size: int) -> None:
    with pytest.raises(CorruptImage, match="cut off"):
        find_partition(write(tmp_path / "x.sif", descriptor(0x4004, offset=offset, size=size)))
