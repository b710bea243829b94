"""Tar headers, read and written as bytes: names in layers are bytes, and need not be text in any encoding.

Sources: POSIX pax(1) "ustar Interchange Format" and "pax Extended Header"; the GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from zlib import adler32

from udi_core.errors import CorruptImage

BLOCK = 512
#: Type flags, as numbers.
FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"
LINKS = frozenset((LINK, SYMLINK))
OLD_FILE, CONTIGUOUS, SPARSE = b"\x007S"
PAX, GLOBAL, LONG_NAME, LONG_LINK = b"xgLK"
#: Magic and version of POSIX, of GNU, and of the formats before.
POSIX = b"ustar\x0000"
MAGICS = frozenset((POSIX, b"ustar  \0", bytes(8)))
#: What ends a number.
ENDS = frozenset(b"\0 ")


def number(field: bytes) -> int:
    """A numeric field: octal text between any blanks and NULs, or GNU's base-256 if the first bit is set.

    Raises:
        ValueError: it is neither.
    """
    if field[0] & 0x80:
        # Base-256 is a two's complement number of which the first bit is the marker.
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    text = field.strip(b"\0 ").partition(b"\0")[0]
    if not text:
        return 0
    if not text.isdigit():
        raise ValueError(field)
    return int(text, 8)


def has_plain_numbers(header: bytes) -> bool:
    """Whether every reader takes the size for the same number, and mode, owner and time begin with a digit."""
    firsts = header[100], header[108], header[116], header[136]
    return header[124:135].isdigit() and header[135] in ENDS and all(48 <= first < 56 for first in firsts)


def checksum_fits(header: bytes) -> bool:
    """Whether the header's checksum is right."""
    try:
        told = number(header[148:156])
    except ValueError:
        return False
    # The lower half of an Adler-32 is one more than the sum of the bytes, modulo 65521; sum() takes twenty times
    # as long.  The field itself counts as eight blanks.
    return adler32(header[156:], adler32(header[:148])) & 0xFFFF == (told - 8 * 32 + 1) % 65521


def signed_checksum_fits(header: bytes) -> bool:
    """Whether the checksum is right for the writers of old that summed signed bytes."""
    found = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 8 * 32
    try:
        return number(header[148:156]) == found
    except ValueError:
        return False


def name(header: bytes) -> bytes:
    """The entry's name: prefix and name of ustar, or the name alone in GNU and older formats."""
    found = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        # star's format has times behind a shorter prefix, and tells itself by the last four bytes.
        prefix = header[345:476] if header[508:512] == b"tar\0" else header[345:500]
        return prefix.partition(b"\0")[0] + b"/" + found
    return found


def parse_pax(body: bytes) -> tuple[dict[bytes, bytes], bool]:
    """The records of an extended header, and whether each key is there once and no value is empty.

    An empty value removes the key, as pax(1) says.  The pairs of GNU's sparse format 0.0, whose keys repeat, come
    as the ``GNU.sparse.map`` that format 0.1 has.

    Raises:
        CorruptImage: a record is malformed.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    clean = True
    start = 0
    while start < len(body):
        blank = body.find(b" ", start, start + 20)
        digits = body[start:blank] if blank > 0 else b""
        end = start + int(digits) if digits.isdigit() else 0
        key, equals, value = body[blank + 1 : end - 1].partition(b"=")
        if not start < blank < end <= len(body) or body[end - 1] != 10 or not equals or not key or b"\0" in key:
            raise CorruptImage("A layer has a malformed extended header", repr(body[start : start + 40]))
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse.append(value)
        elif not value:
            clean = False
            records.pop(key, None)
        else:
            clean = clean and key not in records
            records[key] = value
        start = end
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records, clean


def format_pax(records: dict[bytes, bytes]) -> bytes:
    """An extended header entry, header and padded body, that holds these records."""
    body = b"".join(_record(key, value) for key, value in records.items())
    header = _blank(b"pax_header", PAX, b"0000644")
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


def rebuilt(header: bytes, kind: int) -> bytes:
    """A POSIX header with the permissions of another; an extended header in front of it gives all the rest.

    Raises:
        ValueError: the mode or a device number cannot be read, or is larger than Linux has them.
    """
    made = _blank(b"entry", kind, b"%07o" % (number(header[100:108]) & 0o7777))
    if kind in (CHARACTER, BLOCK_DEVICE):
        major, minor = number(header[329:337]), number(header[337:345])
        if not 0 <= major < 1 << 12 or not 0 <= minor < 1 << 20:
            raise ValueError((major, minor))
        made[329:345] = b"%07o\0%07o\0" % (major, minor)
    return seal(made)


def hard_link(name: bytes, target: bytes) -> bytes:
    """The entry of a hard link, extended header included."""
    return format_pax({b"path": name, b"linkpath": target}) + seal(_blank(b"link", LINK, b"0000644"))


def directory(name: bytes) -> bytes:
    """The entry of a directory of root's, mode 0755, time 0; extended header included if the name needs one."""
    if len(name) < 100:
        return seal(_blank(name, DIRECTORY, b"0000755"))
    return format_pax({b"path": name}) + seal(_blank(b"directory", DIRECTORY, b"0000755"))


def _blank(name: bytes, kind: int, mode: bytes) -> bytearray:
    header = bytearray(BLOCK)
    header[0 : len(name)] = name
    header[100:107] = mode
    header[108:115] = header[116:123] = b"0" * 7
    header[124:135] = header[136:147] = b"0" * 11
    header[156] = kind
    header[257:265] = POSIX
    return header
