"""Images without layers: a squashfs or SIF file, or a directory; imported into the store like any other."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from udi_core.errors import CorruptImage, ImageNotFound
from udi_core.progress import Progress, ProgressSink
from udi_core.sif import find_partition
from udi_core.squashfs import SquashfsOptions, SquashfsWriter, read_superblock

_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SquashfsPart:
    """Where a squashfs lies in a file: offset and size in bytes."""

    path: str
    offset: int
    size: int


def find_squashfs(path: str) -> SquashfsPart:
    """The squashfs of a squashfs file or of a SIF's primary partition.

    Raises:
        ImageNotFound: no such file, or it cannot be read.
        UnsupportedImage: an encrypted SIF, or one whose partition is no squashfs.
        CorruptImage: it is neither, or is cut off.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise ImageNotFound(f"{path} is no file", "It is a device, a FIFO or a socket.", "Check the path.")
        found = find_partition(path)
        offset = found[0] if found else 0
        used = read_superblock(path, offset).size
    except FileNotFoundError:
        raise ImageNotFound(f"{path} does not exist", "", "Check the path.") from None
    except IsADirectoryError:
        raise ImageNotFound(f"{path} is a directory", "", f"Write dir:{path} for an image in a directory.") from None
    except OSError as error:
        raise ImageNotFound(f"{path} cannot be read", error.strerror or str(error), "Mend its permissions.") from error
    return SquashfsPart(path=path, offset=offset, size=min(found[1], used) if found else used)


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
            except OSError as error:
                hint = "Mend its permissions, and let nobody write there meanwhile."
                raise ImageNotFound(f"{path} cannot be read whole", str(error), hint) from error
        writer.finish()


def _walk(top: str) -> Iterator[str]:
    """Names below a directory, sorted, parents first; the same tree gives the same order."""
    yield ""

    def stop(error: OSError) -> None:
        raise error

    for directory, directories, names in os.walk(top, onerror=stop):
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
