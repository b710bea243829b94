"""Which image is the one for a node of some kind."""

from __future__ import annotations

import pytest

from udi_core.errors import UsageError
from udi_core.manifest import Descriptor, Index, Platform, choose
from udi_core.node_kind import ancestry, check_kind, choose_kind, level, parse_kinds
from udi_core.platforms import host_platform


def node(kind: str) -> tuple[str, ...]:
    return ancestry({"UDI_NODE_KIND": kind})


@pytest.mark.parametrize(
    ("kind", "offered", "chosen"),
    [
        ("mic_knl", ["mic_knl", "haswell", "default"], "mic_knl"),
        ("haswell", ["mic_knl", "haswell", "default"], "haswell"),
        ("ivybridge", ["mic_knl", "haswell", "default"], "default"),
        ("skylake", ["haswell", "ivybridge", "default"], "haswell"),
        ("skylake_avx512", ["v3", "v4", "default"], "v4"),
        ("zen3", ["v4", "v3", "v2"], "v3"),
        ("zen3", ["x86_64_v2", "v1"], "x86_64_v2"),
        ("zen3", ["haswell"], None),
        ("core2", ["v3", "v1"], "v1"),
        ("neoverse_v1", ["v2", "aarch64", "default"], "aarch64"),
    ],
)
def test_the_most_special_kind_wins(kind: str, offered: list[str], chosen: str | None) -> None:
    assert choose_kind(offered, node(kind)) == chosen
    assert choose_kind(reversed(offered), node(kind)) == chosen


@pytest.mark.parametrize(
    ("kind", "expected"), [("mic_knl", "v3"), ("skylake_avx512", "v4"), ("core2", ""), ("v2", "v2"), ("a64fx", "")]
)
def test_the_level_of_a_node(kind: str, expected: str) -> None:
    assert level(node(kind)) == expected


def test_this_machine_is_of_some_kind_and_default() -> None:
    here = ancestry({})
    assert len(here) == len(set(here)) >= 1
    assert choose_kind(["default"], here) == "default"


def test_what_a_node_is_said_to_be_decides_which_variant_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {variant: f"sha256:{number:064x}" for number, variant in enumerate(("", "v2", "v3", "v4"))}
    index = Index(
        digest="sha256:" + "f" * 64,
        manifests=tuple(
            Descriptor(media_type="", digest=digest, size=1, platform=Platform(variant=variant))
            for variant, digest in digests.items()
        ),
    )
    for kind, variant in (("mic_knl", "v3"), ("skylake_avx512", "v4"), ("nehalem", "v2"), ("x86_64", "")):
        monkeypatch.setenv("UDI_NODE_KIND", kind)
        platform = Platform(variant=host_platform().variant)
        assert choose(index, platform).digest == digests[variant]


@pytest.mark.parametrize("kind", ["hasswell", "v5", "KNL", ""])
def test_a_kind_that_does_not_exist_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match="is not a kind of node"):
        check_kind(kind)


def test_a_node_cannot_be_said_to_be_default() -> None:
    with pytest.raises(UsageError, match="is not a kind of node") as caught:
        node("default")
    assert "UDI_NODE_KIND" in caught.value.details


def test_kinds_on_a_command_line() -> None:
    texts = ["mic_knl=docker:lab/reco:knl", "v3=ghcr.io/lab/reco:v3", "docker:lab/reco:1"]
    assert parse_kinds(texts) == {
        "mic_knl": "docker:lab/reco:knl",
        "v3": "ghcr.io/lab/reco:v3",
        "default": "docker:lab/reco:1",
    }
    assert parse_kinds(["/scratch/run=3/image.squashfs"]) == {"default": "/scratch/run=3/image.squashfs"}
    with pytest.raises(UsageError, match="Two images are for default nodes"):
        parse_kinds(["a", "default=b"])
    with pytest.raises(UsageError, match="hasswell"):
        parse_kinds(["hasswell=a"])
