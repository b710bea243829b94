"""What running an image needs of its config; apart from manifests, because a warm start reads no manifest.

Source: OCI image-spec 1.1, config.md.
"""

from __future__ import annotations

from udi_core.values import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What an image was built for, in Go's names: ``linux/amd64/v3``."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


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
