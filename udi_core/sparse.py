"""Maps of GNU sparse files: four ways to write them, read into one.

A map is a list of regions, (offset, length) in bytes, in order; what lies between them are holes.  Source: the GNU
tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from udi_core.errors import CorruptImage, UnsupportedImage
from udi_core.tarheader import BLOCK, number

Regions = list[tuple[int, int]]

_MAX_REGIONS = 1 << 20
_LINE = re.compile(rb"[0-9]{1,20}\n")
_NUMBER = re.compile(rb"[0-9]{1,20}")


def is_sparse(records: Mapping[bytes, bytes]) -> bool:
    """Whether the records of an extended header are those of a sparse file, in a format that is known."""
    version = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if version == (None, None):
        return b"GNU.sparse.map" in records
    return version in ((b"0", b"0"), (b"0", b"1"), (b"1", b"0"))


def read_old(header: bytes, take: Callable[[int], bytes], what: str) -> tuple[Regions, int]:
    """The map and the size of an entry of type ``S``; ``take`` reads the blocks behind its header."""
    pairs: list[bytes] = []
    fields, more = header[386:482], header[482]
    try:
        while True:
            for start in range(0, len(fields), 24):
                if not fields[start]:
                    break
                pairs.append(fields[start : start + 24])
            if not more:
                break
            if len(pairs) > _MAX_REGIONS:
                raise _too_many(what)
            block = take(BLOCK)
            fields, more = block[:504], block[504]
        return [(number(each[:12]), number(each[12:])) for each in pairs], number(header[483:495])
    except ValueError:
        raise _malformed(what) from None


def read_pax(
    records: Mapping[bytes, bytes], size: int, take: Callable[[int], bytes], what: str
) -> tuple[Regions, int, int]:
    """The map, the size, and how many bytes ``take`` was asked for.  Format 1.0 has its map before the content."""
    real = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize") or b"%d" % size
    if not _NUMBER.fullmatch(real):
        raise _malformed(what)
    if records.get(b"GNU.sparse.major") == b"1":
        regions, taken = _read_map(size, take, what)
        return regions, int(real), taken
    listed = records.get(b"GNU.sparse.map")
    numbers = listed.split(b",") if listed else []
    if len(numbers) % 2 or not all(map(_NUMBER.fullmatch, numbers)):
        raise _malformed(what)
    return list(zip(map(int, numbers[::2]), map(int, numbers[1::2]), strict=True)), int(real), 0


def _read_map(size: int, take: Callable[[int], bytes], what: str) -> tuple[Regions, int]:
    text, taken, wanted, place = b"", 0, 1, 0
    numbers: list[int] = []
    while len(numbers) < wanted:
        line = _LINE.match(text, place)
        if line is None:
            if taken + BLOCK > size + (-size % BLOCK) or len(text) - place > 20:
                raise _malformed(what)
            text, place = text[place:] + take(BLOCK), 0
            taken += BLOCK
            continue
        numbers.append(int(line[0]))
        place = line.end()
        if len(numbers) == 1:
            if numbers[0] > _MAX_REGIONS:
                raise _too_many(what)
            wanted = 1 + 2 * numbers[0]
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), taken


def check(regions: Regions, size: int, content: int, what: str) -> None:
    """Whether a map fits the file's size and the bytes that follow.

    Raises:
        CorruptImage: it does not.
    """
    end = 0
    for offset, length in regions:
        if length < 0 or offset < end:
            raise _malformed(what)
        end = offset + length
    if end > size or sum(length for _, length in regions) != content:
        raise _malformed(what)


def _malformed(what: str) -> CorruptImage:
    return CorruptImage(f"{what} has a malformed map of a sparse file")


def _too_many(what: str) -> UnsupportedImage:
    return UnsupportedImage(f"{what} has a sparse file in more than {_MAX_REGIONS} pieces")
