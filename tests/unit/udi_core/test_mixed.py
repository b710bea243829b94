"""What is pulled for nodes of all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import oci
from udi_core.config import Config
from udi_core.errors import ImageAbsent, UnsupportedImage, UsageError
from udi_core.image_config import Platform
from udi_core.mixed import for_this_node, platform_of, pull_for_nodes, stored_for_nodes
from udi_core.store import ImageStore

pytestmark = pytest.mark.needs("tar2sqfs")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(store=str(tmp_path / "store"), node_dir=str(tmp_path / "node"))


def index(path: Path, *levels: str) -> str:
    """A reference of an index with an image for each level; equal levels share an image."""
    layout = oci.Layout(path)
    layout.add_index(
        [
            layout.add_image([oci.Layer.of(oci.file("level", each))], tag=None, platform=f"linux/amd64{each}")
            for each in levels
        ]
    )
    return f"oci:{path}"


def test_an_index_is_pulled_for_every_level_that_it_has(config: Config, tmp_path: Path) -> None:
    store = ImageStore(config.store)
    levels = {"default": index(tmp_path / "a", "", "/v3")}
    found = pull_for_nodes(levels, store, config)
    assert list(found) == ["v3", "default"]
    assert found["v3"].config.platform == Platform(variant="v3")
    assert {kind: image.digest for kind, image in stored_for_nodes(levels, store, config).items()} == {
        kind: image.digest for kind, image in found.items()
    }
    # Without an image for level 1 there is none for every node.
    assert list(pull_for_nodes({"default": index(tmp_path / "b", "/v2", "/v4")}, store, config)) == ["v4", "v2"]


def test_a_kind_that_is_named_wins_over_the_index(config: Config, tmp_path: Path) -> None:
    store = ImageStore(config.store)
    references = {
        "v3": index(tmp_path / "mine", "/v2"),
        "default": index(tmp_path / "a", "", "/v3"),
        "haswell": index(tmp_path / "b", "", "/v3", "/v4"),
    }
    found = pull_for_nodes(references, store, config)
    assert {kind: image.config.platform.variant for kind, image in found.items()} == {
        "v3": "v2",
        "haswell": "v3",
        "default": "",
    }


def test_levels_that_are_asked_for_and_this_machines_own(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UDI_NODE_KIND", "haswell")
    store = ImageStore(config.store)
    references = {"default": index(tmp_path / "a", "", "/v2", "/v3", "/v4")}

    def found(**options: Any) -> dict[str, str]:
        images = pull_for_nodes(references, store, config, **options)
        return {kind: image.config.platform.variant for kind, image in images.items()}

    assert found(levels=()) == {"default": "v3"}
    assert found(levels=["v4"]) == {"v4": "v4", "v3": "v3"}
    assert found(levels=["v3", "v1"]) == {"v3": "v3", "default": ""}
    assert found(levels=["v4"], platform=Platform(variant="v2")) == {"v4": "v4", "default": "v2"}
    references = {"default": index(tmp_path / "b", "/v3"), "mic_knl": references["default"]}
    assert found(levels=(), platform=Platform(variant="v3")) == {"default": "v3", "mic_knl": "v3"}
    with pytest.raises(UnsupportedImage):
        found(levels=["v2"])


def test_one_image_for_all_is_pulled_once(config: Config, tmp_path: Path) -> None:
    layout = oci.Layout(tmp_path / "one")
    layout.add_image([oci.Layer.of(oci.file("x", "y"))])
    store = ImageStore(config.store)
    assert list(pull_for_nodes({"default": f"oci:{layout.path}"}, store, config)) == ["default"]
    with pytest.raises(ImageAbsent):
        stored_for_nodes({"default": "oci:/nowhere"}, store, config)


def test_an_image_for_no_node_of_this_architecture(config: Config, tmp_path: Path) -> None:
    layout = oci.Layout(tmp_path / "arm")
    arm = layout.add_image([oci.Layer.of(oci.file("x", "y"))], tag=None, platform="linux/arm64")
    layout.add_index([arm])
    with pytest.raises(UnsupportedImage, match="not for linux"):
        pull_for_nodes({"default": f"oci:{layout.path}"}, ImageStore(config.store), config)
    found = pull_for_nodes({"neoverse_v1": f"oci:{layout.path}"}, ImageStore(config.store), config)
    assert found["neoverse_v1"].config.platform.architecture == "arm64"


@pytest.mark.parametrize(
    ("kind", "platform"),
    [("mic_knl", "linux/amd64/v3"), ("v1", "linux/amd64"), ("a64fx", "linux/arm64"), ("power9le", "linux/ppc64le")],
)
def test_what_is_pulled_for_a_kind(kind: str, platform: str) -> None:
    assert str(platform_of(kind)) == platform


def test_the_node_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDI_NODE_KIND", "mic_knl")
    assert for_this_node({"v3": "a", "mic_knl": "b", "default": "c"}, "it") == "b"
    with pytest.raises(UsageError, match="fits this node") as caught:
        for_this_node({"skylake": "a", "v4": "b"}, "it")
    assert caught.value.details == "It is a mic_knl; there are images for skylake, v4."
