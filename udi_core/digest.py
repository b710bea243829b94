"""Content digests: the strings that name every blob, and reading a stream while checking it.

Source: OCI image-spec, descriptor.md, "Digests".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

from udi_core.errors import CorruptImage

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest of a registered algorithm, in canonical form."""
    return _DIGEST.fullmatch(text) is not None


def short(digest: str) -> str:
    """The first twelve hexadecimal digits, as Docker shows them."""
    return digest.partition(":")[2][:12]


def of(data: bytes) -> str:
    """The sha256 digest of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check(data: bytes, digest: str, what: str) -> None:
    """Compare bytes with their digest.

    Raises:
        CorruptImage: they differ.
    """
    algorithm = digest.partition(":")[0]
    found = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    if found != digest:
        raise mismatch(what, digest, found)


def checked(chunks: Iterable[bytes], digest: str, what: str) -> Iterator[bytes]:
    """Pass chunks through, and compare them with ``digest`` when they end.

    The consumer must not trust what it got before the iterator is exhausted.

    Raises:
        CorruptImage: at the end, if they differ.
    """
    algorithm = digest.partition(":")[0]
    state = hashlib.new(algorithm)
    for chunk in chunks:
        state.update(chunk)  # releases the GIL for chunks above 2 KiB
        yield chunk
    found = f"{algorithm}:{state.hexdigest()}"
    if found != digest:
        raise mismatch(what, digest, found)


def mismatch(what: str, expected: str, found: str) -> CorruptImage:
    """The error for bytes that are not what their digest promises."""
    return CorruptImage(
        f"{what} is not what its digest promises",
        f"expected {expected}\nfound    {found}",
        "Try again; if it stays so, the registry or a proxy on the way damages data.",
    )
