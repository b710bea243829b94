"""Image references: everything that people type to name an image, and the one canonical form.

Sources: the grammar of distribution/reference (registry, repository, tag, digest); Shifter's
``docker:NAME``; Apptainer's and Snakemake's ``docker://NAME``; containers-transports(5) for ``oci:``,
``docker-archive:`` and ``dir:``.
"""

from __future__ import annotations

import os

from udi_core.errors import InvalidReference
from udi_core.values import dataclass

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from typing import Literal

    Transport = Literal["docker", "oci", "docker-archive", "dir", "file", "id"]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"

_LONGEST = 255  # as distribution/reference has it; and no file name on Linux is longer
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
        if at and not _is_digest(digest):
            raise wrong(f"The digest {digest!r} is not sha256: with 64 lower-case hexadecimal digits.")
        head, slash, tail = rest.partition("/")
        if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
            registry, rest = head, tail
            if not _is_registry(registry):
                raise wrong(f"The registry {registry!r} is not a host name with an optional port.")
        else:
            registry = DEFAULT_REGISTRY
        if registry in ("index.docker.io", "registry-1.docker.io"):
            registry = DEFAULT_REGISTRY
        repository, colon, tag = rest.partition(":")
        if colon and not _is_tag(tag):
            raise wrong(
                f"The tag {tag!r} must be 1 to 128 letters, digits, '_', '.' or '-', and not begin with '.' or '-'."
            )
        if not repository:
            raise wrong("The repository is missing.")
        if max(len(registry), len(repository)) > _LONGEST:
            raise wrong(f"Neither a registry nor a repository has more than {_LONGEST} characters.")
        for component in repository.split("/"):
            if not _is_component(component):
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
            digits = rest.removeprefix("sha256:")
            if not (12 <= len(digits) <= 64 and _only(digits, _HEXADECIMAL)):
                raise InvalidReference(
                    f"{text!r} is not an image reference",
                    f"The image id {rest!r} is not 12 to 64 lower-case hexadecimal digits.",
                    "`udi images` lists the ids of the images in the store.",
                )
            return cls(transport="id", digest=digits)
        path, tag = rest, None
        if scheme in ("oci", "docker-archive"):
            # The tag of a docker-archive is itself NAME:TAG, so split at the first colon behind the path.
            head, _, base = rest.rpartition("/")
            if ":" in base or ":" in head:
                path, _, tag = rest.partition(":")
            tag = tag or None
        if not path.startswith("/"):
            try:
                path = os.path.join(cwd or os.getcwd(), path)
            except FileNotFoundError:
                raise InvalidReference(
                    f"{text!r} is not an image reference",
                    "Its path is relative, and the current directory does not exist any more.",
                    "Write an absolute path, or cd to another directory.",
                ) from None
        return cls(transport=scheme, tag=tag, path=os.path.normpath(path))  # type: ignore[arg-type]

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


# What distribution/reference writes as regular expressions.  Importing re costs a warm start 5 ms.
_HEXADECIMAL = "0123456789abcdef"
_LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
_LETTERS = _LOWER + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _only(text: str, characters: str) -> bool:
    return bool(text) and not text.strip(characters)


def _is_registry(text: str) -> bool:
    """A host name, an address or ``[IPv6]``, and an optional port of up to five digits."""
    host, colon, port = text.rpartition(":")
    if not colon or (host.startswith("[") and not host.endswith("]")):
        host, port = text, "0"
    if not (_only(port, "0123456789") and len(port) <= 5):
        return False
    if host.startswith("["):
        return host.endswith("]") and _only(host[1:-1], _HEXADECIMAL + "ABCDEF:")
    labels = host.split(".")
    return all(_only(label, _LETTERS + "-") and "-" not in (label[0], label[-1]) for label in labels)


def _is_tag(text: str) -> bool:
    return len(text) <= 128 and _only(text, _LETTERS + "_.-") and text[0] not in ".-"


def _is_digest(text: str) -> bool:
    algorithm, _, digits = text.partition(":")
    return len(digits) == {"sha256": 64, "sha512": 128}.get(algorithm) and _only(digits, _HEXADECIMAL)


def _is_component(text: str) -> bool:
    """Lower-case letters and digits, in runs that ``.``, ``_``, ``__`` or any number of ``-`` separate."""
    if not _only(text, _LOWER + "._-") or text[0] in "._-" or text[-1] in "._-":
        return False
    separators = "".join(" " if character in _LOWER else character for character in text).split()
    return all(each in (".", "_", "__") or _only(each, "-") for each in separators)
