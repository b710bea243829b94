"""Pointer files: read back, written once, never half seen."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from udi_snakemake import pointer
from udi_snakemake.pointer import Pointer

from udi_core.errors import CorruptImage, StoreError, UsageError


def image(letter: str) -> Pointer:
    return Pointer(reference="docker://docker.io/library/bash:latest", digest="sha256:" + letter * 64, store="/s/udi")


def test_round_trip(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "0f.simg")
    assert pointer.write(path, image("a")) == image("a")
    assert pointer.read(path) == image("a")
    assert os.listdir(tmp_path / "deep") == ["0f.simg"]


def test_each_node_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = image("a")
    several = replace(one, images={"v3": "sha256:" + "b" * 64, "default": one.digest}, index="sha256:" + "c" * 64)
    path = str(tmp_path / "0f.simg")
    pointer.write(path, several)
    assert pointer.read(path) == several
    monkeypatch.setenv("UDI_NODE_KIND", "haswell")
    assert (one.for_this_node(), several.for_this_node()) == (one.digest, several.images["v3"])
    monkeypatch.setenv("UDI_NODE_KIND", "nehalem")
    assert several.for_this_node() == one.digest
    with pytest.raises(UsageError, match="fits this node"):
        replace(several, images={"v4": one.digest}).for_this_node()


def test_the_first_writer_wins_and_force_replaces(tmp_path: Path) -> None:
    path = str(tmp_path / "0f.simg")
    pointer.write(path, image("a"))
    assert pointer.write(path, image("b")) == image("a")
    assert pointer.read(path) == image("a")
    assert pointer.write(path, image("b"), replace=True) == image("b")
    assert pointer.read(path) == image("b")


def test_many_writers_agree(tmp_path: Path) -> None:
    path = str(tmp_path / "0f.simg")
    digits = "0123456789abcdef"
    children = []
    for digit in digits:
        pid = os.fork()
        if pid == 0:
            seen = pointer.write(path, image(digit))
            (tmp_path / f"seen-{digit}").write_text(seen.digest)
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    written = pointer.read(path)
    assert written is not None
    assert {(tmp_path / f"seen-{digit}").read_text() for digit in digits} == {written.digest}
    assert not list(tmp_path.glob(".udi-*"))


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    path = str(tmp_path / "0f.simg")
    pointer.write(path, image("a"))
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            pointer.write(path, image("b"), replace=True)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        assert {seen.digest[7] for seen in (pointer.read(path) for _ in range(300)) if seen} <= {"a", "b"}
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("content", [b"hsqs....", b"", b"#!/usr/bin/env run-singularity\n"])
def test_other_files_are_no_pointers(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.sif"
    path.write_bytes(content)
    assert pointer.read(str(path)) is None


def test_absent_and_directories_are_no_pointers(tmp_path: Path) -> None:
    assert pointer.read(str(tmp_path / "absent")) is None
    assert pointer.read(str(tmp_path)) is None


@pytest.mark.parametrize("document", ['{"udi-pointer": 2}', '{"udi-pointer": 1}', '{"udi-pointer": 1, "refe'])
def test_damaged_pointers_say_what_to_do(tmp_path: Path, document: str) -> None:
    path = tmp_path / "x.simg"
    path.write_text(document)
    with pytest.raises(CorruptImage) as caught:
        pointer.read(str(path))
    assert "it is written again by the next run" in caught.value.hint


def test_a_real_image_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.sif"
    path.write_bytes(b"an image")
    with pytest.raises(StoreError, match="no pointer file"):
        pointer.write(str(path), image("a"))
    assert path.read_bytes() == b"an image"


def test_an_unwritable_prefix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written") as caught:
        pointer.write(str(tmp_path / "file" / "x.simg"), image("a"))
    assert "--apptainer-prefix" in caught.value.hint


def test_a_pointer_tells_a_person_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.simg"
    pointer.write(str(path), image("a"))
    assert "it is not the image" in json.loads(path.read_text())["note"]
