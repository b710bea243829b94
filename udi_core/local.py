"""Images without layers: a squashfs or SIF file, or a directory; imported into the store like any other.

Source: SIF specification (github.com/apptainer/sif, pkg/sif), global header and data object descriptors.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from udi_core.errors import CorruptImage, ImageNotFound, UnsupportedImage
from udi_core.progress import Progress, ProgressSink
from udi_core.squashfs import SquashfsOptions, SquashfsWriter, read_superblock

_CHUNK = 4 << 20
_SIF_HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
_SIF_DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
_SIF_PARTITION = 0x4004
_SQUASHFS, _PRIMARY = 1, 2  # file system and partition types of a SIF


@dataclass(frozen=True, slots=True, kw_only=True)
class SquashfsPart:
    """Where a squashfs lies in a file: offset and size in bytes."""

    path: str
    offset: int
    size: int


def find_squashfs(path: str) -> SquashfsPart:
    """The squashfs of a squashfs file or of a SIF's primary partition.

    Raises:
        ImageNotFound: no such file.
        UnsupportedImage: an encrypted SIF, or one whose partition is no squashfs.
        CorruptImage: it is neither, or is cut off.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_SIF_HEADER.size)
            if head[32:42].rstrip(b"\0") != b"SIF_MAGIC":
                return SquashfsPart(path=path, offset=0, size=read_superblock(path).size)
            offset, size = _sif_partition(path, head, file.read)
    except FileNotFoundError:
        raise ImageNotFound(f"{path} does not exist", "", "Check the path.") from None
    except IsADirectoryError:
        raise ImageNotFound(f"{path} is a directory", "", f"Write dir:{path} for an image in a directory.") from None
    return SquashfsPart(path=path, offset=offset, size=min(size, read_superblock(path, offset).size))


def _sif_partition(path: str, head: bytes, read: Callable[[int], bytes]) -> tuple[int, int]:
    """Offset and size of the primary system partition."""
    if len(head) < _SIF_HEADER.size:
        raise CorruptImage(f"{path} is cut off", "Its SIF header is not whole.")
    *_, total, start, size, _, _ = _SIF_HEADER.unpack(head)
    if not 0 < total <= 4096 or not 0 < start < 1 << 40:
        raise CorruptImage(f"{path} has a SIF header that cannot be right", f"{total} descriptors at {start}.")
    read(start - _SIF_HEADER.size)
    table = read(total * _SIF_DESCRIPTOR.size)
    for number in range(len(table) // _SIF_DESCRIPTOR.size):
        fields = _SIF_DESCRIPTOR.unpack_from(table, number * _SIF_DESCRIPTOR.size)
        kind, used, offset, size, extra = fields[0], fields[1], fields[5], fields[6], fields[13]
        if not used or kind != _SIF_PARTITION:
            continue
        file_system, partition = struct.unpack_from("<ii", extra)
        if partition != _PRIMARY:
            continue
        if file_system != _SQUASHFS:
            raise UnsupportedImage(
                f"{path} holds no squashfs",
                f"Its partition is of SIF file system type {file_system} (2 is ext3, 6 is encrypted).",
                "Build it anew without encryption.",
            )
        return offset, size
    raise UnsupportedImage(f"{path} has no primary partition", "", "Give a SIF that apptainer can run.")


def copy_squashfs(part: SquashfsPart, target: str, progress: ProgressSink) -> None:
    """Copy a squashfs out of a file; the kernel shares blocks where the file system can."""
    with open(part.path, "rb") as source, open(target, "wb") as file:
        source.seek(part.offset)
        done = 0
        while done < part.size:
            chunk = source.read(min(_CHUNK, part.size - done))
            if not chunk:
                raise CorruptImage(f"{part.path} is cut off", f"{done} of {part.size} bytes.")
            file.write(chunk)
            done += len(chunk)
            progress(Progress("copy", os.path.basename(part.path), done, part.size))


def pack_directory(path: str, target: str, options: SquashfsOptions) -> None:
    """Write a directory as a squashfs; files of others become root's, as in any image, and sockets are left out.

    Raises:
        ImageNotFound: it is no directory, or cannot be read.
    """
    if not os.path.isdir(path):
        raise ImageNotFound(f"{path} is not a directory", "", "Check the path.")
    with SquashfsWriter(target, options) as writer:
        # The stream format never seeks, and asks of its file only to be written to.
        with tarfile.open(fileobj=_Sink(writer.write), mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            try:
                for name in _walk(path):
                    archive.add(os.path.join(path, name), arcname=name or ".", recursive=False, filter=_owned_by_root)
            except PermissionError as error:
                raise ImageNotFound(f"{path} cannot be read whole", str(error), "Mend its permissions.") from error
        writer.finish()


def _walk(top: str) -> Iterator[str]:
    """Names below a directory, sorted, parents first; the same tree gives the same order."""
    yield ""
    for directory, directories, names in os.walk(top):
        directories.sort()
        inside = os.path.relpath(directory, top)
        for name in sorted(directories + names):
            yield name if inside == "." else os.path.join(inside, name)


def _owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


class _Sink:
    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        self._write(data)
        return len(data)


def file_digest(path: str) -> str:
    """The sha256 digest of a file."""
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
