"""SIF files: where in one the squashfs lies.

Source: the format's reference implementation, github.com/apptainer/sif, pkg/sif (global header, data object
descriptors); all numbers are little-endian.
"""

from __future__ import annotations

import struct

from udi_core.errors import CorruptImage, UnsupportedImage

_HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
_DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
_PARTITION = 0x4004  # a data object's type
_PRIMARY = 2  # a partition's type: the one with the root file system
_FILE_SYSTEMS = {1: "squashfs", 2: "ext3", 3: "an archive", 4: "raw data", 5: "encrypted", 6: "encrypted"}
_MAX_DESCRIPTORS = 4096  # apptainer makes room for 48


def find_partition(path: str) -> tuple[int, int] | None:
    """Offset and size in bytes of the squashfs of a SIF's primary partition; None if the file is no SIF.

    Nothing of the file is trusted; that there is a squashfs at the offset is not looked at.

    Raises:
        UnsupportedImage: the partition is encrypted or no squashfs, or there is none.
        CorruptImage: the header or a descriptor cannot be right.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
        if head[32:42] != b"SIF_MAGIC\0":
            return None
        if len(head) < _HEADER.size:
            raise CorruptImage(f"{path} is cut off", "Its SIF header is not whole.")
        *_, total, start, _, _, _ = _HEADER.unpack(head)
        if not 0 < total <= _MAX_DESCRIPTORS or not _HEADER.size <= start < 1 << 40:
            raise CorruptImage(f"{path} has a SIF header that cannot be right", f"{total} descriptors at {start}.")
        file.seek(start)
        table = file.read(total * _DESCRIPTOR.size)
        length = file.seek(0, 2)
    if len(table) < total * _DESCRIPTOR.size:
        raise CorruptImage(f"{path} is cut off", "Its SIF descriptors are not whole.")
    for kind, used, _, _, _, offset, size, *_, extra in _DESCRIPTOR.iter_unpack(table):
        file_system, partition = struct.unpack_from("<ii", extra)
        if not used or kind != _PARTITION or partition != _PRIMARY:
            continue
        if file_system != 1:
            raise UnsupportedImage(
                f"{path} holds no squashfs that can be mounted",
                f"The file system of its primary partition is {_FILE_SYSTEMS.get(file_system, 'unknown')}.",
                "Build it anew, as squashfs and without encryption.",
            )
        if not 0 < offset < length or not 0 < size <= length - offset:
            raise CorruptImage(f"{path} is cut off", f"Its partition is {size} bytes at {offset}, the file {length}.")
        return offset, size
    raise UnsupportedImage(f"{path} has no primary partition", "", "Give a SIF that apptainer can run.")
