"""Where an image comes from: a registry, an OCI layout, an archive; each gives manifests and layer streams.

Images that have no layers (a directory, a squashfs or SIF file) are :mod:`udi_core.local`'s.
"""

from __future__ import annotations

import errno
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from udi_core import digest as digests
from udi_core.config import Config
from udi_core.credentials import Credentials
from udi_core.errors import CorruptImage, ImageNotFound, InvalidReference, UnsupportedImage
from udi_core.manifest import (
    OCI_MANIFEST,
    Descriptor,
    Fields,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    choose,
    parse_config,
    parse_json,
    parse_manifest,
)
from udi_core.platforms import can_run, host_platform, level
from udi_core.progress import ProgressSink, ignore
from udi_core.reference import ImageReference
from udi_core.registry import MANIFEST_LIMIT, RegistryClient, RegistryOptions

_CHUNK = 1 << 20
_MAX_NESTING = 4
_COPY = "Copy or save the image again."


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """One platform's image.

    Attributes:
        manifest: its manifest; ``manifest.digest`` is the image's identity.
        config: its config.
        named: digest of what the reference named: an index, or the manifest itself.
    """

    manifest: Manifest
    config: ImageConfig
    named: str


class Source(Protocol):
    """A place that holds images; a context manager."""

    def __enter__(self) -> Source: ...

    def __exit__(self, *unused: object) -> None: ...

    def manifest(self, digest: str | None) -> tuple[bytes, str, str]:
        """Raw bytes, media type and digest; of what the reference names if ``digest`` is None."""

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, whole and checked."""

    def expect(self, layers: Sequence[Descriptor]) -> None:
        """In which order layers will be read; one that is far away may fetch them ahead."""

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A layer's bytes in order, compressed as they are; the digest is checked when they end."""


def open_source(reference: ImageReference, config: Config, progress: ProgressSink = ignore) -> Source:
    """The source that a reference with layers names.

    Raises:
        ImageNotFound: a local path that does not exist.
    """
    if reference.transport == "docker":
        return _Registry(reference, config, progress)
    if not os.path.exists(reference.path):
        raise ImageNotFound(f"{reference.path} does not exist", f"It was named by {reference}.", "Check the path.")
    if reference.transport == "oci":
        return _Layout(reference)
    return _Archive(reference)


def resolve(source: Source, platform: Platform | None) -> ResolvedImage:
    """Follow the reference, through indexes, to the image of one platform (default: this machine's).

    Raises:
        UnsupportedImage: no image for that platform, or no image at all.
    """
    wanted = platform or host_platform()
    raw, media_type, named = source.manifest(None)
    document = parse_manifest(raw, media_type, named)
    for _ in range(_MAX_NESTING):
        if isinstance(document, Manifest):
            break
        chosen = choose(document, wanted) if any(each.platform for each in document.manifests) else _only(document)
        raw, media_type, digest = source.manifest(chosen.digest)
        document = parse_manifest(raw, chosen.media_type or media_type, digest)
    if isinstance(document, Index):
        raise UnsupportedImage("The image's indexes are nested too deeply", f"More than {_MAX_NESTING} levels.")
    config = parse_config(source.blob(document.config))
    if len(config.diff_ids) != len(document.layers):
        raise CorruptImage(
            "The image's config does not fit its manifest",
            f"{len(config.diff_ids)} diff IDs for {len(document.layers)} layers.",
        )
    if not can_run(config.platform, wanted):
        raise UnsupportedImage(
            f"The image is not for {wanted}",
            f"It is for {config.platform}.",
            "Choose another image or tag, or name the platform yourself with --platform.",
        )
    source.expect(document.layers[::-1])  # flattening begins at the top
    return ResolvedImage(manifest=document, config=config, named=named)


def x86_levels(source: Source) -> frozenset[str] | None:
    """For which x86-64 levels (``v1`` … ``v4``) the reference's index has an image; None if that cannot be told."""
    document = parse_manifest(*source.manifest(None))
    if isinstance(document, Manifest) or not all(each.platform for each in document.manifests):
        return None
    offered = [each.platform for each in document.manifests if each.platform]
    return frozenset(f"v{level(each)}" for each in offered if each.architecture == "amd64" and each.os == "linux")


def _only(index: Index) -> Descriptor:
    if len(index.manifests) != 1:
        raise UnsupportedImage("The index names several images and no platforms", "UDI cannot choose one.")
    return index.manifests[0]


class _Registry:
    def __init__(self, reference: ImageReference, config: Config, progress: ProgressSink) -> None:
        self._reference = reference
        self._client = RegistryClient(
            reference.registry,
            reference.repository,
            RegistryOptions.of(config),
            Credentials(config.auth_file),
            progress=progress,
        )
        self.blob = self._client.blob
        self.stream = self._client.stream
        self.expect = self._client.expect

    def __enter__(self) -> _Registry:
        return self

    def __exit__(self, *unused: object) -> None:
        self._client.__exit__()

    def manifest(self, digest: str | None) -> tuple[bytes, str, str]:
        return self._client.manifest(digest or self._reference.digest or self._reference.tag or "latest")


class _Layout:
    """An OCI image layout (image-spec, image-layout.md)."""

    def __init__(self, reference: ImageReference) -> None:
        self._reference, self._root = reference, reference.path

    def __enter__(self) -> _Layout:
        return self

    def __exit__(self, *unused: object) -> None:
        pass

    def manifest(self, digest: str | None) -> tuple[bytes, str, str]:
        if digest is None:
            chosen = self._choose()
            return self.blob(chosen), chosen.media_type, chosen.digest
        return self._small(digest), "", digest

    def expect(self, layers: Sequence[Descriptor]) -> None:
        pass  # a local file is there when it is read

    def _choose(self) -> Descriptor:
        try:
            path = os.path.join(self._root, "index.json")
            if os.path.lexists(path) and not os.path.isfile(path):  # a FIFO would keep us waiting for ever
                raise OSError(errno.EINVAL, "It is no regular file", path)
            with open(path, "rb") as file:
                index = parse_manifest(file.read(MANIFEST_LIMIT), "application/vnd.oci.image.index.v1+json", "")
        except OSError as error:
            raise ImageNotFound(
                f"{self._root} is not an OCI layout", str(error), "It must hold index.json, oci-layout and blobs/."
            ) from error
        if not isinstance(index, Index):
            raise CorruptImage(f"{self._root}/index.json is not an index")
        return _named(index, self._reference)

    def blob(self, descriptor: Descriptor) -> bytes:
        return self._small(descriptor.digest)

    def _small(self, digest: str) -> bytes:
        with self._open(digest) as file:
            raw: bytes = file.read(MANIFEST_LIMIT)
        digests.check(raw, digest, f"Blob {digest} of {self._root}")
        return raw

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        with self._open(descriptor.digest) as file:
            chunks = iter(lambda: file.read(_CHUNK), b"")
            yield from digests.checked(chunks, descriptor.digest, f"Blob {descriptor.digest} of {self._root}")

    def _open(self, digest: str) -> Any:
        algorithm, _, name = digest.partition(":")
        path = os.path.join(self._root, "blobs", algorithm, name)
        try:
            if not os.path.isfile(path):  # a FIFO would keep us waiting for ever
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return open(path, "rb")
        except OSError as error:
            raise CorruptImage(f"{self._root} lacks a blob", f"{digest}: {error.strerror}", _COPY) from error


def _named(index: Index, reference: ImageReference) -> Descriptor:
    name = "org.opencontainers.image.ref.name"
    tag = reference.tag
    if tag is None and len(index.manifests) == 1:
        return index.manifests[0]
    found = [each for each in index.manifests if tag is not None and each.annotations.get(name) == tag]
    if not found:
        names = sorted(each.annotations[name] for each in index.manifests if name in each.annotations)
        raise ImageNotFound(
            f"{reference.path} holds {'no image ' + repr(tag) if tag else 'more than one image'}",
            f"Its images are: {', '.join(names) or 'unnamed'}.",
            f"Write {reference.transport}:{reference.path}:NAME.",
        )
    return found[0]


def _same(wanted: str, name: str) -> bool:
    """Whether two spellings name one image: some programs write Docker Hub's registry out, others leave it away."""
    try:
        return ImageReference.parse(wanted) == ImageReference.parse(name)
    except InvalidReference:
        return wanted == name


class _Archive:
    """What ``docker save`` and ``podman save`` write: a tar with ``manifest.json``, or an OCI layout in a tar.

    ``manifest.json`` holds no digests of layers, so that the config's diff IDs are what is checked.
    """

    def __init__(self, reference: ImageReference) -> None:
        self._reference = reference
        try:
            # A compressed archive would be decompressed anew for every seek: refuse it with the way out.
            self._tar = tarfile.open(reference.path, "r:")
        except OSError as error:
            path, why = reference.path, error.strerror or str(error)
            raise ImageNotFound(f"{path} cannot be read", why, "Give a file that docker save wrote.") from error
        except tarfile.ReadError as error:
            with open(reference.path, "rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
            hint = (
                f"Unpack it first: gunzip {reference.path}" if packed else "Write one with: docker save -o FILE IMAGE"
            )
            raise CorruptImage(f"{reference.path} is not a docker-archive", str(error), hint) from error

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *unused: object) -> None:
        self._tar.close()

    def manifest(self, digest: str | None) -> tuple[bytes, str, str]:
        entry = self._entry()
        with self._fields():
            config = self._read(entry["Config"])
            layers = [self._layer(name) for name in entry["Layers"]]
        raw = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": digests.of(config),
                    "size": len(config),
                    "annotations": {"path": entry["Config"]},
                },
                "layers": layers,
            }
        ).encode()
        return raw, OCI_MANIFEST, digests.of(raw)

    def blob(self, descriptor: Descriptor) -> bytes:
        return self._read(descriptor.annotations["path"])

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        with self._member(descriptor.annotations["path"]) as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def expect(self, layers: Sequence[Descriptor]) -> None:
        pass

    def _layer(self, name: str) -> dict[str, Any]:
        with self._member(name) as file:
            head = file.read(4)
        kind = "+gzip" if head[:2] == b"\x1f\x8b" else "+zstd" if head == b"\x28\xb5\x2f\xfd" else ""
        # No digest is known without reading the layer: name it by its place, the diff ID checks its bytes.
        return {
            "mediaType": "application/vnd.oci.image.layer.v1.tar" + kind,
            "digest": digests.of(name.encode()),
            "size": self._tar.getmember(name).size,
            "annotations": {"path": name},
        }

    def _entry(self) -> dict[str, Any]:
        entries = parse_json(self._read("manifest.json"), f"manifest.json of {self._reference.path}")
        tag = self._reference.tag
        with self._fields():
            if tag is None and len(entries) == 1:
                return dict(entries[0])
            for entry in entries:
                if tag is not None and any(_same(tag, name) for name in entry.get("RepoTags") or ()):
                    return dict(entry)
            names = sorted(str(name) for entry in entries for name in entry.get("RepoTags") or ())
        raise ImageNotFound(
            f"{self._reference.path} holds {'no image ' + repr(tag) if tag else 'more than one image'}",
            f"Its images are: {', '.join(names)}.",
            f"Write docker-archive:{self._reference.path}:NAME:TAG.",
        )

    def _read(self, name: str) -> bytes:
        with self._member(name) as file:
            data: bytes = file.read(MANIFEST_LIMIT)
        return data

    def _fields(self) -> Fields:
        return Fields(f"manifest.json of {self._reference.path}")

    def _member(self, name: str) -> Any:
        try:
            file = self._tar.extractfile(name)
        except (KeyError, OSError, RecursionError, tarfile.TarError) as error:
            raise CorruptImage(f"{self._reference.path} lacks {name}", str(error), _COPY) from error
        if file is None:
            raise CorruptImage(f"{self._reference.path}: {name} is not a file", "It is a directory or device.", _COPY)
        return file
