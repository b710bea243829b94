"""Tar headers, read and written as bytes: names in layers are bytes, and need not be text in any encoding.

Sources: POSIX pax(1) "ustar Interchange Format"; the GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from udi_core.errors import CorruptImage

BLOCK = 512
REGULAR = frozenset((b"0", b"\0", b"7"))
LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO, SPARSE = b"1", b"2", b"3", b"4", b"5", b"6", b"S"
KNOWN = REGULAR | {LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO, SPARSE}


def number(field: bytes) -> int:
    """A numeric field: octal text, or GNU's base-256 if the first bit is set.

    Raises:
        ValueError: it is neither.
    """
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        # Base-256 is a two's complement number of which the first bit is the marker.
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    text = field.partition(b"\0")[0].strip(b" ")
    return int(text, 8) if text else 0


def checksum_ok(header: bytes) -> bool:
    """Whether the header's checksum fits; some writers summed signed bytes, which is accepted too."""
    try:
        told = number(header[148:156])
    except ValueError:
        return False
    found = sum(header) - sum(header[148:156]) + 8 * 32
    if found == told:
        return True
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 8 * 32
    return signed == told


def name(header: bytes) -> bytes:
    """The entry's name: prefix and name of ustar, or the name alone in GNU and older formats."""
    end = header.find(b"\0", 0, 100)
    found = header[: end if end >= 0 else 100]
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].partition(b"\0")[0] + b"/" + found
    return found


def parse_pax(body: bytes) -> dict[bytes, bytes]:
    """The records of an extended header.

    Raises:
        CorruptImage: a record's length does not fit.
    """
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(body):
        blank = body.find(b" ", start, start + 20)
        digits = body[start:blank] if blank > 0 else b""
        if not digits.isdigit():
            if not body[start:].strip(b"\0"):
                break
            raise CorruptImage("A layer has a malformed extended header", repr(body[start : start + 40]))
        end = start + int(digits)
        key, equals, value = body[blank + 1 : end - 1].partition(b"=")
        if end <= blank or end > len(body) or body[end - 1 : end] != b"\n" or not equals:
            raise CorruptImage("A layer has a malformed extended header", repr(body[start : start + 40]))
        records[key] = value
        start = end
    return records


def format_pax(records: dict[bytes, bytes]) -> bytes:
    """An extended header entry, header and padded body, that holds these records."""
    body = b"".join(_record(key, value) for key, value in records.items())
    header = _blank(b"pax_header", b"x", b"0000644")
    header[124:136] = b"%011o\0" % len(body)
    return seal(header) + body + bytes(-len(body) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def seal(header: bytearray) -> bytes:
    """The header with its checksum computed."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def renamed(header: bytes, size: int | None = None) -> bytes:
    """A header whose name and link fields are empty, for an extended header in front to give."""
    made = bytearray(header)
    made[0:100] = b"renamed" + bytes(93)
    made[157:257] = bytes(100)
    if made[257:263] == b"ustar\0":
        made[345:500] = bytes(155)
    if size is not None:
        made[124:136] = b"%011o\0" % size
    return seal(made)


def hard_link(name: bytes, target: bytes) -> bytes:
    """The entry of a hard link, extended header included."""
    return format_pax({b"path": name, b"linkpath": target}) + seal(_blank(b"link", LINK, b"0000644"))


def directory(name: bytes) -> bytes:
    """The entry of a directory of root's, mode 0755, time 0, with a short name."""
    return seal(_blank(name, DIRECTORY, b"0000755"))


def _blank(name: bytes, kind: bytes, mode: bytes) -> bytearray:
    header = bytearray(BLOCK)
    header[0 : len(name)] = name
    header[100:107] = mode
    header[108:115] = header[116:123] = b"0" * 7
    header[124:135] = header[136:147] = b"0" * 11
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    return header
