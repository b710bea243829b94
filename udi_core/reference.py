"""Image references: everything that people type to name an image, and the one canonical form.

Sources: the grammar of distribution/reference (registry, repository, tag, digest); Shifter's
``docker:NAME``; Apptainer's and Snakemake's ``docker://NAME``; containers-transports(5) for ``oci:``,
``docker-archive:`` and ``dir:``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from udi_core.errors import InvalidReference

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from typing import Literal

    Transport = Literal["docker", "oci", "docker-archive", "dir", "file", "id"]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"

_REGISTRY = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_IMAGE_ID = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_FILE_SUFFIXES = (".squashfs", ".sqsh", ".sqfs", ".sif", ".simg")
_EXAMPLES = (
    "Right ones look like: ubuntu:24.04   docker:ghcr.io/lab/reco:2.1   docker://host:5000/team/tool@sha256:<64 hex>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """A parsed image reference.  Two spellings of the same image compare equal.

    Attributes:
        transport: where the image comes from.
        registry: host, or host:port, for ``docker``; else "".
        repository: path in the registry, with Docker Hub's ``library/`` made explicit; else "".
        tag: tag, or None if only a digest was given.  For ``oci`` and ``docker-archive`` the name inside.
        digest: ``sha256:<hex>`` of the manifest or index, or None.  For ``id`` the (possibly short) hex.
        path: absolute local path for ``oci``, ``docker-archive``, ``dir`` and ``file``; else "".
    """

    transport: Transport
    registry: str = ""
    repository: str = ""
    tag: str | None = None
    digest: str | None = None
    path: str = ""

    @classmethod
    def parse(cls, text: str, *, cwd: str | None = None) -> ImageReference:
        """Parse what a person typed.  Relative paths are taken from ``cwd`` (default: the process's).

        Raises:
            InvalidReference: names the part that is wrong and shows a right reference.
        """
        if text != text.strip() or not text:
            raise InvalidReference(
                f"{text!r} is not an image reference", "It is empty or has blanks around it.", _EXAMPLES
            )
        scheme, colon, rest = text.partition(":")
        if colon and scheme in ("oci", "docker-archive", "dir", "id", "file"):
            return cls._local(text, scheme, rest.removeprefix("//"), cwd)
        if text.lower().endswith(_FILE_SUFFIXES) and ("://" not in text):
            return cls._local(text, "file", text, cwd)
        if text.startswith(("/", "./", "../")):
            raise InvalidReference(
                f"{text!r} is not an image reference",
                f"It looks like a path, but does not end in one of {', '.join(_FILE_SUFFIXES)}.",
                "Use dir:PATH for a directory, oci:PATH for an OCI layout, docker-archive:FILE for a saved image.",
            )
        if "://" in text and not text.startswith("docker://"):
            raise InvalidReference(
                f"{text!r} is not an image reference",
                f"UDI does not know the scheme {text.partition('://')[0]!r}.",
                "Known are docker:, docker://, oci:, docker-archive:, dir:, id:, and paths of squashfs or SIF files.",
            )
        # Shifter's "docker:NAME" wins over Docker Hub's image that is itself called docker: write
        # docker://docker:27-cli for that one.
        name = text.removeprefix("docker://")
        if name == text:
            name = text.removeprefix("docker:")
        return cls._registry(text, name)

    @classmethod
    def _registry(cls, text: str, name: str) -> ImageReference:
        def wrong(details: str) -> InvalidReference:
            return InvalidReference(f"{text!r} is not an image reference", details, _EXAMPLES)

        rest, at, digest = name.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise wrong(f"The digest {digest!r} is not sha256: with 64 lower-case hexadecimal digits.")
        head, slash, tail = rest.partition("/")
        if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
            registry, rest = head, tail
            if not _REGISTRY.fullmatch(registry):
                raise wrong(f"The registry {registry!r} is not a host name with an optional port.")
        else:
            registry = DEFAULT_REGISTRY
        if registry in ("index.docker.io", "registry-1.docker.io"):
            registry = DEFAULT_REGISTRY
        repository, colon, tag = rest.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise wrong(
                f"The tag {tag!r} must be 1 to 128 letters, digits, '_', '.' or '-', and not begin with '.' or '-'."
            )
        if not repository:
            raise wrong("The repository is missing.")
        for component in repository.split("/"):
            if not _COMPONENT.fullmatch(component):
                reason = (
                    "upper-case letters are not allowed"
                    if component != component.lower()
                    else "a character is not allowed"
                )
                raise wrong(f"The repository {repository!r} is malformed at {component!r}: {reason}.")
        if registry == DEFAULT_REGISTRY and "/" not in repository:
            repository = "library/" + repository
        return cls(
            transport="docker",
            registry=registry,
            repository=repository,
            tag=tag or (None if digest else DEFAULT_TAG),
            digest=digest or None,
        )

    @classmethod
    def _local(cls, text: str, scheme: str, rest: str, cwd: str | None) -> ImageReference:
        if not rest:
            raise InvalidReference(
                f"{text!r} is not an image reference", f"Nothing follows {scheme!r}:.", f"Write {scheme}:NAME."
            )
        if scheme == "id":
            match = _IMAGE_ID.fullmatch(rest)
            if not match:
                raise InvalidReference(
                    f"{text!r} is not an image reference",
                    f"The image id {rest!r} is not 12 to 64 lower-case hexadecimal digits.",
                    "`udi images` lists the ids of the images in the store.",
                )
            return cls(transport="id", digest=match[1])
        path, tag = rest, None
        if scheme in ("oci", "docker-archive"):
            # The tag of a docker-archive is itself NAME:TAG, so split at the first colon behind the path.
            head, _, base = rest.rpartition("/")
            if ":" in base or ":" in head:
                path, _, tag = rest.partition(":")
            tag = tag or None
        return cls(transport=scheme, tag=tag, path=os.path.normpath(os.path.join(cwd or os.getcwd(), path)))  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The canonical form; ``parse(str(reference)) == reference``."""
        if self.transport == "docker":
            return (
                f"docker://{self.registry}/{self.repository}"
                + (f":{self.tag}" if self.tag else "")
                + (f"@{self.digest}" if self.digest else "")
            )
        if self.transport == "id":
            return f"id:{self.digest}"
        return f"{self.transport}:{self.path}" + (f":{self.tag}" if self.tag else "")

    @property
    def short(self) -> str:
        """How a person would write it: Docker Hub's registry and ``library/`` left out."""
        if self.transport != "docker":
            return str(self)
        return str(self).removeprefix("docker://").removeprefix(f"{DEFAULT_REGISTRY}/").removeprefix("library/")
