"""Manifests, indexes and image configs as frozen values, parsed at the edge.

Sources: OCI image-spec 1.1 (manifest.md, image-index.md, config.md, descriptor.md) and Docker's
"Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from udi_core.digest import is_digest
from udi_core.errors import CorruptImage, UnsupportedImage, UsageError
from udi_core.image_config import ImageConfig as ImageConfig
from udi_core.image_config import Platform as Platform
from udi_core.node_kind import ancestry, level

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
    with _Fields("The manifest"):
        if media_type in (OCI_INDEX, DOCKER_INDEX) or ("manifests" in document and "layers" not in document):
            return Index(digest=digest, manifests=tuple(_descriptor(each) for each in document["manifests"]))
        config = _descriptor(document["config"])
        layers = tuple(_descriptor(each) for each in document["layers"])
    if config.media_type not in _CONFIG_TYPES or document.get("artifactType"):
        kind = document.get("artifactType") or config.media_type
        raise UnsupportedImage(
            "The reference names an artifact, not an image",
            f"Its type is {kind!r}.",
            "Give the reference of a container image.",
        )
    for layer in layers:
        if layer.media_type not in LAYER_TYPES:
            raise UnsupportedImage(
                "The image has a layer that UDI cannot read",
                f"Layer {layer.digest} is of type {layer.media_type!r}.",
                "Layers must be tar, tar+gzip or tar+zstd, and come from the registry itself.",
            )
    return Manifest(digest=digest, media_type=media_type, config=config, layers=layers)


def parse_config(raw: bytes) -> ImageConfig:
    """Parse the raw bytes of an image config.

    Raises:
        CorruptImage: no JSON, or a field that is missing or of the wrong type.
    """
    document = _json_object(raw, "The image config")
    with _Fields("The image config"):
        inner = document.get("config") or {}
        return ImageConfig(
            platform=Platform(
                os=document.get("os") or "linux",
                architecture=document.get("architecture") or "amd64",
                variant=document.get("variant") or "",
            ),
            env=dict(each.partition("=")[::2] for each in inner.get("Env") or ()),
            entrypoint=_words(inner.get("Entrypoint")),
            cmd=_words(inner.get("Cmd")),
            workdir=inner.get("WorkingDir") or "",
            user=inner.get("User") or "",
            labels={str(key): str(value) for key, value in (inner.get("Labels") or {}).items()},
            diff_ids=tuple(map(_digest, document["rootfs"]["diff_ids"])),
            created=document.get("created") or "",
        )


def host_platform() -> Platform:
    """This machine's platform; on x86-64 with the level of its kind (``v1`` is the empty variant)."""
    machine = os.uname().machine
    architecture, variant = {
        "x86_64": ("amd64", ""),
        "aarch64": ("arm64", "v8"),
        "armv7l": ("arm", "v7"),
        "ppc64le": ("ppc64le", ""),
        "s390x": ("s390x", ""),
        "riscv64": ("riscv64", ""),
    }.get(machine, (machine, ""))
    if architecture == "amd64":
        variant = level(ancestry())
    return Platform(os="linux", architecture=architecture, variant=variant)


def parse_platform(text: str) -> Platform:
    """Parse ``os/architecture[/variant]``.

    Raises:
        UsageError: it is malformed.
    """
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(
            f"{text!r} is not a platform", "", "Write os/architecture[/variant], for example linux/amd64/v3."
        )
    return Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else "")


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
        rank = _level(offered)
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


def can_run(image: Platform, node: Platform) -> bool:
    """Whether an image built for one platform runs on a node of another."""
    if (image.os, image.architecture) != (node.os, node.architecture):
        return False
    if image.architecture == "amd64":
        return _level(image) <= _level(node)
    if image.architecture == "arm":
        return _level(image) <= _level(node) or not image.variant
    return True


def _level(platform: Platform) -> int:
    digits = platform.variant.removeprefix("v")
    return int(digits) if digits.isdigit() else 1


def _json_object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise CorruptImage(f"{what} is not JSON", str(error)) from error
    if not isinstance(document, dict):
        raise CorruptImage(f"{what} is not a JSON object", f"It is a {type(document).__name__}.")
    return document


class _Fields:
    """Turns the errors of reading a document's fields into one that says which document."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (KeyError, TypeError, AttributeError, ValueError)):
            raise CorruptImage(f"{self.what} is malformed", f"{type(error).__name__}: {error}") from error


def _digest(text: Any) -> str:
    if not isinstance(text, str) or not is_digest(text):
        raise ValueError(f"{text!r} is not a digest")
    return text


def _words(value: Any) -> tuple[str, ...]:
    # Very old images hold a plain text, which Docker reads as one word.
    return (value,) if isinstance(value, str) else tuple(map(str, value or ()))


def _descriptor(value: Any) -> Descriptor:
    platform = value.get("platform")
    return Descriptor(
        media_type=str(value.get("mediaType", "")),
        digest=_digest(value["digest"]),
        size=int(value["size"]),
        platform=platform
        and Platform(
            os=str(platform.get("os", "")),
            architecture=str(platform.get("architecture", "")),
            variant=str(platform.get("variant") or ""),
        ),
        annotations=dict(value.get("annotations") or {}),
    )
