"""What IMAGE means on the front's command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from udi_snakemake import pointer
from udi_snakemake.images import understand

from udi_core.errors import ImageNotFound, InvalidReference, UnsupportedImage
from udi_core.reference import ImageReference


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("docker://bash", "docker://docker.io/library/bash:latest"),
        ("bash", "docker://docker.io/library/bash:latest"),
        ("docker-archive:x.tar", "docker-archive:/w/x.tar"),
        ("docker-archive://x.tar", "docker-archive:/w/x.tar"),
        ("oci:layout:1", "oci:/w/layout:1"),
        ("dir:/rootfs", "dir:/rootfs"),
        ("id:0123456789ab", "id:0123456789ab"),
    ],
)
def test_references(text: str, canonical: str) -> None:
    assert str(understand(text, "/w")) == canonical


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("library://a/b:1", "docker://REGISTRY"),
        ("shub://a/b", "docker://REGISTRY"),
        ("oras://ghcr.io/a/b:1", "oras pull"),
        ("https://host/x.sif", "Download the file"),
        ("docker-daemon:bash:latest", "docker save"),
        ("oci-archive:x.tar", "oci:DIR"),
    ],
)
def test_what_only_the_real_program_knows(text: str, way_out: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        understand(text, "/w")
    assert way_out in caught.value.hint


def test_files_are_told_by_their_content(tmp_path: Path) -> None:
    squashfs = tmp_path / "image"
    squashfs.write_bytes(b"hsqs" + bytes(92))
    sif = tmp_path / "x.simg"
    sif.write_bytes(b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + bytes(64))
    for path in (squashfs, sif):
        assert understand(path.name, str(tmp_path)) == ImageReference(transport="file", path=str(path))
    (tmp_path / "root").mkdir()
    assert understand("./root", str(tmp_path)) == ImageReference(transport="dir", path=str(tmp_path / "root"))
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout" / "oci-layout").touch()
    assert understand("layout", str(tmp_path)) == ImageReference(transport="oci", path=str(tmp_path / "layout"))


def test_a_pointer_is_followed(tmp_path: Path) -> None:
    written = pointer.Pointer(
        reference="docker://docker.io/library/bash:latest", digest="sha256:" + "a" * 64, store="/s"
    )
    pointer.write(str(tmp_path / "x.simg"), written)
    assert understand("x.simg", str(tmp_path)) == written


def test_other_files_and_absent_ones(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"something else")
    with pytest.raises(UnsupportedImage, match="no image"):
        understand("./x.tar", str(tmp_path))
    for text in ("./absent", "/absent", "absent.sif"):
        with pytest.raises(ImageNotFound):
            understand(text, str(tmp_path))
