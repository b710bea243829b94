"""Manifests, indexes and image configs as frozen values, parsed at the edge.

Sources: OCI image-spec 1.1 (manifest.md, image-index.md, config.md, descriptor.md) and Docker's
"Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

from dataclasses import dataclass, field

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What an image was built for, in Go's names: ``linux/amd64/v3``."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The part of the image config that running an image needs.

    Attributes:
        env: in the image's order, ``KEY=VALUE`` already split.
        diff_ids: digests of the uncompressed layers, lowest first.
    """

    platform: Platform = Platform()
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    diff_ids: tuple[str, ...] = ()
    created: str = ""
