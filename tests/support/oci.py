"""Write OCI image layouts whose layers are given as Python values: whiteouts, hostile names, odd types.

Layers are tar streams of :class:`Entry`, lowest layer first.  Everything is deterministic: the same entries
give the same digests.  Media types are OCI's, or Docker's schema 2 on request.  Sources: OCI image-spec 1.1
(image-layout.md, layer.md, manifest.md, image-index.md).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zstandard

from udi_core.manifest import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

Compression = Literal["", "gzip", "zstd"]
Descriptor = dict[str, Any]

MTIME = 1_600_000_000
_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(slots=True, kw_only=True)
class Entry:
    """One tar entry: a header and, for regular files, its content."""

    info: tarfile.TarInfo
    content: bytes = b""


def _entry(name: str, kind: bytes, mode: int, content: bytes = b"", **fields: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime, info.size = kind, mode, MTIME, len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return Entry(info=info, content=content)


def file(name: str, content: bytes | str = b"", mode: int = 0o644, **fields: Any) -> Entry:
    """A regular file.  ``fields`` are attributes of :class:`tarfile.TarInfo` (uid, mtime, pax_headers …)."""
    return _entry(name, tarfile.REGTYPE, mode, content.encode() if isinstance(content, str) else content, **fields)


def directory(name: str, mode: int = 0o755, **fields: Any) -> Entry:
    return _entry(name, tarfile.DIRTYPE, mode, **fields)


def symlink(name: str, target: str, **fields: Any) -> Entry:
    return _entry(name, tarfile.SYMTYPE, 0o777, linkname=target, **fields)


def hardlink(name: str, target: str, **fields: Any) -> Entry:
    return _entry(name, tarfile.LNKTYPE, 0o644, linkname=target, **fields)


def device(name: str, major: int, minor: int, *, block: bool = False, mode: int = 0o644, **fields: Any) -> Entry:
    kind = tarfile.BLKTYPE if block else tarfile.CHRTYPE
    return _entry(name, kind, mode, devmajor=major, devminor=minor, **fields)


def fifo(name: str, mode: int = 0o644, **fields: Any) -> Entry:
    return _entry(name, tarfile.FIFOTYPE, mode, **fields)


def whiteout(path: str) -> Entry:
    """The entry that hides ``path`` of the layers below."""
    head, _, tail = path.rpartition("/")
    return file(f"{head}/.wh.{tail}" if head else f".wh.{tail}", mode=0o000)


def opaque(path: str) -> Entry:
    """The entry that hides everything that the layers below have in the directory ``path``."""
    return file(f"{path.rstrip('/')}/.wh..wh..opq", mode=0o000)


def tar(entries: Iterable[Entry], format: int = tarfile.PAX_FORMAT) -> bytes:
    """The uncompressed tar of some entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for entry in entries:
            archive.addfile(entry.info, io.BytesIO(entry.content))
    return buffer.getvalue()


def compress(data: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, compresslevel=1, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(data)
    return data


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(slots=True, kw_only=True)
class Layer:
    """A layer before it is written.

    Attributes:
        data: the uncompressed tar; any bytes, so that malformed ones can be tried.
        compression: of the blob.
        diff_id: what the config will claim; by default the truth.
    """

    data: bytes
    compression: Compression = "gzip"
    diff_id: str = ""

    @classmethod
    def of(cls, *entries: Entry, compression: Compression = "gzip") -> Layer:
        return cls(data=tar(entries), compression=compression)


@dataclass(slots=True, kw_only=True)
class Image:
    """What :meth:`Layout.add_image` wrote."""

    descriptor: Descriptor
    manifest: dict[str, Any]
    config: dict[str, Any]

    @property
    def digest(self) -> str:
        digest: str = self.descriptor["digest"]
        return digest


@dataclass(slots=True)
class Layout:
    """An OCI image layout directory, written as it grows: after every call it is a valid layout."""

    path: Path
    manifests: list[Descriptor] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        index = self.path / "index.json"
        if index.exists():
            self.manifests = json.loads(index.read_bytes())["manifests"]
        else:
            self._write_index()

    def __fspath__(self) -> str:
        return str(self.path)

    def blob_path(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")

    def add_blob(self, data: bytes, media_type: str) -> Descriptor:
        """Write a blob; returns its descriptor.  Idempotent."""
        digest = digest_of(data)
        path = self.blob_path(digest)
        if not path.exists():
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(data)
            temporary.rename(path)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def add_image(
        self,
        layers: Sequence[Layer],
        *,
        tag: str | None = "latest",
        config: Mapping[str, Any] | None = None,
        platform: str = "linux/amd64",
        docker: bool = False,
    ) -> Image:
        """Write an image.

        Args:
            layers: lowest first.
            tag: its name in the layout's index; None leaves it out, for an image that an index will hold.
            config: the inner ``config`` of the image config: ``Env``, ``Entrypoint``, ``WorkingDir`` …
            platform: ``os/architecture[/variant]``.
            docker: Docker's schema 2 media types in place of OCI's.
        """
        blobs = [
            self.add_blob(compress(layer.data, layer.compression), layer_type(layer.compression, docker))
            for layer in layers
        ]
        return self.add_layers(
            blobs,
            diff_ids=[layer.diff_id or digest_of(layer.data) for layer in layers],
            tag=tag,
            config=config,
            platform=platform,
            docker=docker,
        )

    def add_layers(
        self,
        layers: Sequence[Descriptor],
        *,
        diff_ids: Sequence[str],
        tag: str | None = "latest",
        config: Mapping[str, Any] | None = None,
        platform: str = "linux/amd64",
        docker: bool = False,
    ) -> Image:
        """Write config and manifest for layers whose blobs are already in the layout; see :meth:`add_image`."""
        parts = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
        image_config = {
            **parts,
            "created": "2024-01-01T00:00:00Z",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        }
        config_type = "vnd.docker.container.image.v1+json" if docker else "vnd.oci.image.config.v1+json"
        media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self.add_blob(_json(image_config), f"application/{config_type}"),
            "layers": list(layers),
        }
        descriptor = {**self.add_blob(_json(manifest), media_type), "platform": parts}
        if tag is not None:
            self.tag(descriptor, tag)
        return Image(descriptor=descriptor, manifest=manifest, config=image_config)

    def add_index(
        self, images: Iterable[Image | Descriptor], *, tag: str | None = "latest", docker: bool = False
    ) -> Descriptor:
        """Write an index of images, or of descriptors that :meth:`add_index` returned (a nested index)."""
        media_type = DOCKER_INDEX if docker else OCI_INDEX
        manifests = [each.descriptor if isinstance(each, Image) else each for each in images]
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
        descriptor = self.add_blob(_json(document), media_type)
        if tag is not None:
            self.tag(descriptor, tag)
        return descriptor

    def tag(self, descriptor: Descriptor, tag: str) -> None:
        """Give a manifest or index a name in the layout; moves the name if it exists."""
        self.manifests = [each for each in self.manifests if each.get("annotations", {}).get(_REF_NAME) != tag]
        self.manifests.append({**descriptor, "annotations": {_REF_NAME: tag}})
        self._write_index()

    def find(self, tag: str | None = None) -> Descriptor:
        """Descriptor of a tagged manifest; without ``tag`` the only one."""
        found = [each for each in self.manifests if tag in (None, each.get("annotations", {}).get(_REF_NAME))]
        if len(found) != 1:
            raise LookupError(f"{len(found)} manifests named {tag!r} in {self.path}")
        return found[0]

    def read(self, descriptor: Descriptor) -> Any:
        """The JSON document that a descriptor points to."""
        return json.loads(self.blob_path(descriptor["digest"]).read_bytes())

    def _write_index(self) -> None:
        (self.path / "index.json").write_bytes(
            _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self.manifests})
        )


def children(document: Mapping[str, Any]) -> Iterator[Descriptor]:
    """What a manifest or index points to."""
    if "manifests" in document:
        yield from document["manifests"]
    else:
        yield document["config"]
        yield from document["layers"]


def layer_type(compression: Compression, docker: bool = False) -> str:
    if docker:
        return "application/vnd.docker.image.rootfs.diff.tar" + (f".{compression}" if compression else "")
    return "application/vnd.oci.image.layer.v1.tar" + (f"+{compression}" if compression else "")


def _json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
