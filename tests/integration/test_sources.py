"""Images from places other than a registry, pulled by the command's own path."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support import oci
from udi_core import (
    Config,
    CorruptImage,
    ImageNotFound,
    ImageReference,
    ImageStore,
    StoredImage,
    UnsupportedImage,
    pull,
)
from udi_core.manifest import parse_manifest
from udi_core.platforms import parse_platform

pytestmark = pytest.mark.needs("tar2sqfs", "unsquashfs")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(store=str(tmp_path / "store"), node_dir=str(tmp_path / "node"))


@pytest.fixture
def layout(tmp_path: Path) -> oci.Layout:
    made = oci.Layout(tmp_path / "layout")
    layers = [oci.Layer.of(oci.directory("etc"), oci.file("etc/name", "lower")), oci.Layer.of(oci.file("top", "t"))]
    made.add_image(layers, config={"Env": ["A=b"]})
    return made


def fetch(text: str, config: Config) -> StoredImage:
    return pull(ImageReference.parse(text), ImageStore(config.store), config)


def content(image: StoredImage, path: str) -> str:
    return subprocess.run(["unsquashfs", "-cat", image.squashfs, path], capture_output=True, text=True).stdout


@pytest.mark.needs("skopeo")
def test_a_docker_archive(layout: oci.Layout, config: Config, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    source, target = f"oci:{layout.path}:latest", f"docker-archive:{archive}:team/name:1"
    subprocess.run(["skopeo", "copy", "-q", source, target], check=True)
    for text in (f"docker-archive:{archive}", f"docker-archive:{archive}:team/name:1"):
        image = fetch(text, config)
        assert content(image, "etc/name") == "lower" and image.config.env["A"] == "b"
    with pytest.raises(ImageNotFound, match="no image"):
        fetch(f"docker-archive:{archive}:other:1", config)


def test_an_oci_layout_of_several_images_wants_a_name(layout: oci.Layout, config: Config) -> None:
    layout.add_image([oci.Layer.of(oci.file("other", "o"))], tag="other")
    with pytest.raises(ImageNotFound, match="more than one"):
        fetch(f"oci:{layout.path}", config)
    assert content(fetch(f"oci:{layout.path}:other", config), "other") == "o"


def test_a_squashfs_file_is_hashed_once(layout: oci.Layout, config: Config, tmp_path: Path) -> None:
    original = fetch(f"oci:{layout.path}:latest", config)
    copy = tmp_path / "copy.squashfs"
    copy.write_bytes(Path(original.squashfs).read_bytes())
    image = fetch(str(copy), config)
    assert content(image, "top") == "t" and image.digest == f"sha256:{image.squashfs_sha256}"
    assert fetch(str(copy), config) == image
    copy.write_bytes(b"no squashfs")
    with pytest.raises(CorruptImage, match="not a squashfs"):
        fetch(str(copy), config)


def test_a_directory(config: Config, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("f")
    (tree / "link").symlink_to("sub/file")
    image = fetch(f"dir:{tree}", config)
    assert content(image, "sub/file") == "f"
    assert fetch(f"dir:{tree}", config).digest == image.digest, "the same tree gives the same bytes"


def test_a_missing_path_is_named(config: Config, tmp_path: Path) -> None:
    for text in (f"oci:{tmp_path}/none", f"docker-archive:{tmp_path}/none.tar", f"dir:{tmp_path}/none"):
        with pytest.raises(ImageNotFound, match="none"):
            fetch(text, config)


def test_a_compressed_archive_says_how_to_go_on(config: Config, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.addfile(tarfile.TarInfo("x"))
    with pytest.raises(CorruptImage, match="gunzip"):
        fetch(f"docker-archive:{archive}", config)


def test_the_highest_level_that_the_node_has_is_chosen(layout: oci.Layout, config: Config) -> None:
    images = [
        layout.add_image([oci.Layer.of(oci.file("level", each))], tag=None, platform=f"linux/amd64{each}")
        for each in ("", "/v2", "/v3", "/v4")
    ]
    nested = layout.add_index(images, tag=None)
    layout.add_index([nested], tag="levels")
    reference, store = ImageReference.parse(f"oci:{layout.path}:levels"), ImageStore(config.store)
    for wanted, level in (("linux/amd64", ""), ("linux/amd64/v2", "/v2"), ("linux/amd64/v4", "/v4")):
        image = pull(reference, store, config, platform=parse_platform(wanted))
        assert content(image, "level") == level
    with pytest.raises(UnsupportedImage, match="linux/arm64"):
        pull(reference, store, config, platform=parse_platform("linux/arm64"))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "schema 1"),
        ({"schemaVersion": 2, "artifactType": "x/y", "config": "CONFIG", "layers": []}, "artifact"),
        ({"schemaVersion": 2, "config": "HELM", "layers": []}, "artifact"),
        ({"schemaVersion": 2, "config": "CONFIG", "layers": ["FOREIGN"]}, "cannot read"),
    ],
)
def test_what_is_no_image_is_refused(document: dict[str, object], said: str) -> None:
    import json

    digest = "sha256:" + "0" * 64
    kinds = {
        "CONFIG": "application/vnd.oci.image.config.v1+json",
        "HELM": "application/vnd.cncf.helm.config.v1+json",
        "FOREIGN": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
    text = json.dumps(document)
    for name, kind in kinds.items():
        text = text.replace(f'"{name}"', json.dumps({"mediaType": kind, "digest": digest, "size": 1}))
    with pytest.raises(UnsupportedImage, match=said):
        parse_manifest(text.encode(), "application/vnd.oci.image.manifest.v1+json", digest)
