"""Manifests, indexes and image configs as frozen values, parsed at the edge.

Sources: OCI image-spec 1.1 (manifest.md, image-index.md, config.md, descriptor.md) and Docker's
"Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from udi_core.digest import is_digest
from udi_core.errors import CorruptImage, UnsupportedImage
from udi_core.image_config import ImageConfig as ImageConfig
from udi_core.image_config import Platform as Platform
from udi_core.platforms import can_run, level

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A typed, sized, content-addressed pointer to a blob."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One platform's image: a config and its layers, lowest first.  ``digest`` is that of the raw bytes."""

    digest: str
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A list of manifests (or further indexes), one for each platform."""

    digest: str
    manifests: tuple[Descriptor, ...]


# What registries send in the place of an image, and what it is called.
_REFUSED = {
    "application/vnd.docker.distribution.manifest.v1+json": "a schema 1 manifest",
    "application/vnd.docker.distribution.manifest.v1+prettyjws": "a schema 1 manifest",
}
# Nobody has layers of a terabyte; a size that large is a mistake or an attack on what is planned from it.
_MAX_SIZE = 1 << 40
_LONGEST = 500  # characters of a message that quotes a document
_ASK = "Tell who made the image, or who keeps the registry."
_CONFIG_TYPES = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
#: Layer media type -> compression.
LAYER_TYPES = {
    "application/vnd.oci.image.layer.v1.tar": "",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}


def parse_manifest(raw: bytes, media_type: str, digest: str) -> Manifest | Index:
    """Parse the raw bytes of a manifest or index.

    ``media_type`` is what the registry or descriptor said; the document's own ``mediaType`` wins, and a
    document with neither is told by its fields (OCI image-spec 1.0 made the field optional).

    Raises:
        UnsupportedImage: schema 1, or an artifact that is no image.
        CorruptImage: no JSON, or a field that is missing or of the wrong type.
    """
    document = _json_object(raw, "The manifest")
    media_type = str(document.get("mediaType") or media_type.partition(";")[0].strip())
    if document.get("schemaVersion") == 1 or media_type in _REFUSED:
        raise UnsupportedImage(
            "The image has a schema 1 manifest",
            "Docker deprecated this format in 2019; it carries no usable layer digests.",
            "Pull and push it again with a current Docker, or ask the image's owner to.",
        )
    with Fields("The manifest"):
        if media_type in (OCI_INDEX, DOCKER_INDEX) or ("manifests" in document and "layers" not in document):
            return Index(digest=digest, manifests=tuple(_descriptor(each) for each in _list(document["manifests"])))
        config = _descriptor(document["config"])
        layers = tuple(_descriptor(each) for each in _list(document["layers"]))
    if config.media_type not in _CONFIG_TYPES or document.get("artifactType"):
        kind = document.get("artifactType") or config.media_type
        raise UnsupportedImage(
            "The reference names an artifact, not an image",
            f"Its type is {str(kind)[:_LONGEST]!r}.",
            "Give the reference of a container image.",
        )
    for layer in layers:
        if layer.media_type not in LAYER_TYPES:
            raise UnsupportedImage(
                "The image has a layer that UDI cannot read",
                f"Layer {layer.digest} is of type {layer.media_type[:_LONGEST]!r}.",
                "Layers must be tar, tar+gzip or tar+zstd, and come from the registry itself.",
            )
    return Manifest(digest=digest, media_type=media_type, config=config, layers=layers)


def parse_config(raw: bytes) -> ImageConfig:
    """Parse the raw bytes of an image config.

    Raises:
        CorruptImage: no JSON, or a field that is missing or of the wrong type.
    """
    document = _json_object(raw, "The image config")
    with Fields("The image config"):
        inner = document.get("config") or {}
        return ImageConfig(
            platform=Platform(
                os=_text(document.get("os") or "linux"),
                architecture=_text(document.get("architecture") or "amd64"),
                variant=_text(document.get("variant") or ""),
            ),
            env=dict(_text(each).partition("=")[::2] for each in _list(inner.get("Env") or []) if each[:1] != "="),
            entrypoint=_words(inner.get("Entrypoint")),
            cmd=_words(inner.get("Cmd")),
            workdir=_text(inner.get("WorkingDir") or ""),
            user=_text(inner.get("User") or ""),
            labels={_text(key): _text(str(value)) for key, value in (inner.get("Labels") or {}).items()},
            diff_ids=tuple(map(_digest, document["rootfs"]["diff_ids"])),
            created=_text(document.get("created") or ""),
        )


def choose(index: Index, platform: Platform) -> Descriptor:
    """The manifest of an index that fits a platform best.

    Among x86-64 levels it is the highest that the platform has; no variant counts as ``v1``, the lowest.

    Raises:
        UnsupportedImage: none fits; the details list what there is.
    """
    best: tuple[int, Descriptor] | None = None
    for each in index.manifests:
        offered = each.platform
        if offered is None or (offered.os, offered.architecture) != (platform.os, platform.architecture):
            continue
        if not can_run(offered, platform):
            continue
        rank = level(offered)
        if best is None or rank > best[0]:
            best = rank, each
    if best is None:
        offers = sorted(
            {str(each.platform) for each in index.manifests if each.platform and each.platform.os != "unknown"}
        )
        raise UnsupportedImage(
            f"The image is not for {platform}",
            f"It is there for: {', '.join(offers) or 'no platform at all'}.",
            "Choose one with --platform, or ask the image's owner for one that fits.",
        )
    return best[1]


def parse_json(raw: bytes, what: str) -> Any:
    """A JSON document of somebody else's.

    Raises:
        CorruptImage: it is none, or nested too deeply.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptImage(f"{what} is not JSON", str(error), _ASK) from error


def _json_object(raw: bytes, what: str) -> dict[str, Any]:
    document = parse_json(raw, what)
    if not isinstance(document, dict):
        raise CorruptImage(f"{what} is not a JSON object", f"It is a {type(document).__name__}.", _ASK)
    return document


class Fields:
    """Turns the errors of reading a document's fields into one that says which document."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (LookupError, TypeError, AttributeError, ValueError)):
            details = f"{type(error).__name__}: {error}"
            raise CorruptImage(f"{self.what} is malformed", details[:_LONGEST], _ASK) from error


def _digest(text: Any) -> str:
    if not isinstance(text, str) or not is_digest(text):
        raise ValueError(f"{text!r} is not a digest")
    return text


def _text(value: Any) -> str:
    """A text that can become an argument, a variable or a line of a file: UTF-8, without NUL."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    value.encode()
    if "\0" in value:
        raise ValueError(f"{value!r} holds a NUL byte")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_SIZE:
        raise ValueError(f"{value!r} is not a size")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _words(value: Any) -> tuple[str, ...]:
    # Very old images hold a plain text, which Docker reads as one word.
    return tuple(map(_text, [value] if isinstance(value, str) else _list(value or [])))


def _descriptor(value: Any) -> Descriptor:
    platform = value.get("platform")
    return Descriptor(
        media_type=_text(value.get("mediaType") or ""),
        digest=_digest(value["digest"]),
        size=_size(value["size"]),
        platform=platform
        and Platform(
            os=_text(platform.get("os") or ""),
            architecture=_text(platform.get("architecture") or ""),
            variant=_text(platform.get("variant") or ""),
        ),
        annotations={_text(key): _text(str(each)) for key, each in (value.get("annotations") or {}).items()},
    )
