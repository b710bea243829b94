"""SIF files, made after the format's definition; right ones, and with odd numbers in them."""

from __future__ import annotations

import struct
from pathlib import Path

DATA = 0x1_0000  # where the data begins


def descriptor(kind: int, file_system: int = 1, partition: int = 2, *, offset: int = DATA, size: int = 5000) -> bytes:
    """One entry of the table; by default for a primary partition with a squashfs, if ``kind`` is 0x4004."""
    numbers = (kind, True, 1, 0xF0000001, 0, offset, size, size, 0, 0, 0, 0)
    extra = struct.pack("<ii3s", file_system, partition, b"02\0").ljust(384, b"\0")
    return struct.pack("<i?IIIqqqqqqq", *numbers) + b"squash".ljust(128, b"\0") + extra


def write(path: Path, *descriptors: bytes, data: bytes = bytes(5000), total: int = 48, start: int = 4096) -> str:
    """A SIF that holds ``data``; unused descriptors fill the table."""
    table = b"".join(descriptors).ljust(48 * 585, b"\0")
    head = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + b"01\0" + b"02\0" + bytes(16)
    head += struct.pack("<8q", 0, 0, 40, total, start, len(table), DATA, len(data))
    path.write_bytes((head.ljust(4096, b"\0") + table).ljust(DATA, b"\0") + data)
    return str(path)


def around(squashfs: bytes, path: Path) -> str:
    """A SIF whose image is ``squashfs``."""
    return write(path, descriptor(0x4004, size=len(squashfs)), data=squashfs)
