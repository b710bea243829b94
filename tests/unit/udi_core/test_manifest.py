"""Manifests and configs that a broken or hostile registry could send: each is one clear error, and costs little."""

from __future__ import annotations

import json
from typing import Any

import pytest

from udi_core import CorruptImage
from udi_core.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse_config, parse_manifest

DIGEST = "sha256:" + "a" * 64
LAYER: dict[str, Any] = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": 5}
CONFIG: dict[str, Any] = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 5}
ODD: list[Any] = [None, 5, "text", [], [5], {}, {"a": 1}, True, 1e999, [[[[]]]]]


def repr_short(value: object) -> str:
    return repr(value)[:40]


def manifest(**changes: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER], **changes}).encode()


def config(inner: Any = None, **changes: Any) -> bytes:
    document = {"architecture": "amd64", "os": "linux", "config": inner, "rootfs": {"diff_ids": [DIGEST]}, **changes}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"{", b"[]", b"5", b'"x"', b"[" * 1_000_000, b'{"a":' * 100_000, b"1" * 9999]
)
def test_what_is_no_json_object(raw: bytes) -> None:
    for parse in (lambda: parse_manifest(raw, OCI_MANIFEST, DIGEST), lambda: parse_config(raw)):
        with pytest.raises(CorruptImage, match="JSON"):
            parse()


@pytest.mark.parametrize(
    "layer",
    [
        *ODD,
        *({**LAYER, "size": size} for size in (-1, 1.5, "5", None, 1 << 60, float("nan"), float("inf"), True)),
        *({**LAYER, "digest": digest} for digest in ("", "sha256:x", "md5:00", "../../etc/passwd", DIGEST + "\n", 5)),
        {**LAYER, "mediaType": "\ud800"},
        {**LAYER, "annotations": ["a"]},
        {**LAYER, "platform": "linux"},
    ],
    ids=repr_short,
)
def test_a_descriptor_of_the_wrong_kind(layer: Any) -> None:
    for changes in ({"layers": [layer]}, {"config": layer}):
        with pytest.raises(CorruptImage, match="malformed"):
            parse_manifest(manifest(**changes), OCI_MANIFEST, DIGEST)


@pytest.mark.parametrize("value", [each for each in ODD if each != []], ids=repr_short)
def test_lists_of_the_wrong_kind(value: Any) -> None:
    with pytest.raises(CorruptImage, match="malformed"):
        parse_manifest(manifest(layers=value), OCI_MANIFEST, DIGEST)
    with pytest.raises(CorruptImage, match="malformed"):
        parse_manifest(json.dumps({"manifests": value}).encode(), OCI_INDEX, DIGEST)


@pytest.mark.parametrize(
    "raw",
    [
        *(config({"Env": value}) for value in (5, [5], {"A": "b"}, ["A=\0"], ["A=\ud800"], [["A=b"]])),
        *(config({"Entrypoint": value}) for value in (5, [5], {"a": "b"}, ["\0"])),
        *(config({"WorkingDir": value}) for value in (5, ["/"], "/\0")),
        *(config({"Labels": value}) for value in (5, ["a"], "a=b", {"a": "\0"})),
        *(config([value]) for value in (5, "x")),
        *(config(rootfs=value) for value in (None, 5, [], {}, {"diff_ids": ["x"]}, {"diff_ids": 5})),
        config(architecture=5),
        config(variant=["v3"]),
        config(created={"a": 1}),
    ],
    ids=repr_short,
)
def test_a_config_of_the_wrong_kind(raw: bytes) -> None:
    with pytest.raises(CorruptImage, match="malformed"):
        parse_config(raw)


def test_messages_do_not_quote_a_whole_document() -> None:
    with pytest.raises(CorruptImage) as caught:
        parse_manifest(manifest(layers=[{**LAYER, "size": "9" * 1_000_000}]), OCI_MANIFEST, DIGEST)
    assert len(str(caught.value)) < 1000


def test_what_old_and_odd_builders_write_is_read() -> None:
    found = parse_manifest(manifest(annotations=None, layers=[{**LAYER, "annotations": {"n": 5}}]), "", DIGEST)
    assert isinstance(found, Manifest) and found.layers[0].annotations == {"n": "5"}
    env = {"A": "b=c", "EMPTY": "", "BARE": ""}
    assert parse_config(config({"Env": ["A=b=c", "EMPTY=", "BARE", "=odd"]})).env == env
    raw = config({"Env": None, "Cmd": "one word", "Entrypoint": None, "Labels": None, "User": None}, variant=None)
    assert parse_config(raw).cmd == ("one word",)
    assert parse_config(config({"Env": ["A=b=c", "EMPTY=", "BARE", "=odd"]})).env == {
        "A": "b=c",
        "EMPTY": "",
        "BARE": "",
    }
