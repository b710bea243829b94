"""Squashfs files: written from a tar stream by tar2sqfs, and their superblock read.

Source: tar2sqfs(1), mksquashfs(1); Linux, fs/squashfs/squashfs_fs.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
import tempfile
from dataclasses import dataclass
from typing import IO

from udi_core import _process
from udi_core.errors import CorruptImage, StoreError, StoreFull, ToolFailed, ToolMissing

MAGIC = 0x73717368
_SUPERBLOCK = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")
_COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_F_SETPIPE_SZ = 1031
_BACKLOG = 32 << 20  # bytes of blocks that wait inside tar2sqfs
# A write of the tar wakes the program: pieces below the first size wait until they are as many bytes as the second.
_SMALL, _COLLECT = 32 << 10, 256 << 10
_PROBE = 1 << 20  # bytes; as large as the largest block
_LEVELS = frozenset({"gzip", "xz", "zstd"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SquashfsOptions:
    """How to compress; the same options and the same tar give the same bytes.

    zstd level 3 is what reads fastest at a size that is hardly larger; tar2sqfs's default, 15, costs 15 times the
    CPU seconds.
    """

    compression: str = "zstd"
    level: int = 3
    block_size: int = 131072


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """The first 96 bytes of a squashfs."""

    inodes: int
    modified: int
    block_size: int
    compression: str
    version: tuple[int, int]
    size: int


def read_superblock(path: str, offset: int = 0) -> Superblock:
    """Read and check a superblock; nothing of the file is trusted.

    Raises:
        CorruptImage: the file is no squashfs 4.0, is cut off, or has tables outside the file.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        raw = file.read(_SUPERBLOCK.size)
        length = os.fstat(file.fileno()).st_size - offset

    def wrong(details: str) -> CorruptImage:
        return CorruptImage(f"{path} is not a squashfs that can be mounted", details, "Make it anew, or pull again.")

    if len(raw) < _SUPERBLOCK.size:
        raise wrong(f"It has {len(raw)} bytes.")
    (magic, inodes, modified, block_size, _, compression, block_log, _, _, major, minor, _, used, *tables) = (
        _SUPERBLOCK.unpack(raw)
    )
    if magic != MAGIC:
        raise wrong("It does not begin with the magic number.")
    if (major, minor) != (4, 0):
        raise wrong(f"It is of version {major}.{minor}; Linux mounts 4.0.")
    if not 4096 <= block_size <= 1 << 20 or block_size != 1 << block_log or compression not in _COMPRESSORS:
        raise wrong(f"Block size {block_size}, compressor {compression}.")
    if used > length:
        raise wrong(f"It is cut off: {length} of {used} bytes.")
    if any(table > used and table != 0xFFFFFFFFFFFFFFFF for table in tables):
        raise wrong("A table lies outside the file.")
    return Superblock(
        inodes=inodes,
        modified=modified,
        block_size=block_size,
        compression=_COMPRESSORS[compression],
        version=(major, minor),
        size=used,
    )


def writer_program() -> tuple[str, str]:
    """Name and path of the program that turns a tar into a squashfs.

    It is tar2sqfs, or mksquashfs from 4.6 on where that is missing: 4.5 drops the leading ``/`` of a symlink target in
    an extended header, and cannot set a compression level.  mksquashfs looks owners up by name on this machine, so
    that it must be given headers without names (``rewrite`` of :func:`udi_core.flatten.flatten`), and takes the root's
    attributes from nowhere: they are 0755, root's, of 1970.

    Raises:
        ToolMissing: neither is there.
    """
    tool = _process.find_tool("tar2sqfs")
    if tool is not None:
        return "tar2sqfs", tool
    tool = _process.find_tool("mksquashfs")
    if tool is None or writer_version("mksquashfs", tool) < (4, 6):
        raise ToolMissing(
            "No program is installed that writes squashfs files",
            "Needed to flatten images: tar2sqfs, or mksquashfs 4.6 or newer.",
            "Ask an administrator for: apt-get install squashfs-tools-ng   (or by conda-forge: squashfs-tools-ng)",
        )
    return "mksquashfs", tool


def writer_argv(name: str, tool: str, path: str, options: SquashfsOptions) -> list[str]:
    """The command that turns a tar on its standard input into a squashfs at ``path``."""
    level = options.compression in _LEVELS and options.level > 0
    # The merge keeps one CPU busy, and feeds no more than some four compressors.
    jobs = str(min(4, max(1, len(os.sched_getaffinity(0)) - 1)))
    if name == "tar2sqfs":
        argv = [tool, "--quiet", "--force", "--no-skip", "--compressor", options.compression]
        if level:
            argv += ["--comp-extra", f"level={options.level}"]
        # Each small file is a block of its own on the way to the fragments: with the default of ten blocks for a
        # thread, tar2sqfs spends more time waking threads than compressing.
        backlog = max(20, _BACKLOG // options.block_size)
        return [
            *argv,
            *("--block-size", str(options.block_size), "--num-jobs", jobs, "--queue-backlog", str(backlog)),
            # The time of the file system and of undeclared directories: by default SOURCE_DATE_EPOCH, if that is set.
            *("--defaults", "mtime=0", path),
        ]
    argv = [tool, "-", path, "-tar", "-quiet", "-no-progress", "-noappend", "-comp", options.compression]
    if level:
        argv += ["-Xcompression-level", str(options.level)]
    return [
        *argv,
        *("-b", str(options.block_size), "-processors", jobs),
        *("-mkfs-time", "0", "-root-time", "0", "-root-mode", "0755", "-root-uid", "0", "-root-gid", "0"),
        *("-default-mode", "0755", "-default-uid", "0", "-default-gid", "0"),
    ]


def list_programs(path: str) -> dict[str, str | None]:
    """Shells and Pythons in the usual directories of a squashfs, as :class:`udi_core.flatten.FlattenReport` has them.

    Empty where unsquashfs is not installed: who runs the image finds out then.
    """
    tool = _process.find_tool("unsquashfs")
    if tool is None:
        return {}
    directories = ("bin", "usr/bin", "usr/local/bin", "opt/conda/bin")
    listing = _process.run([tool, "-lls", "-d", "", path, *directories], check=False).stdout.decode(errors="replace")
    found: dict[str, str | None] = {}
    for name, link in re.findall(r"^[-l]\S+ +\S+ +\d+ \S+ \S+ /?(\S+)(?: -> (\S+))?$", listing, re.MULTILINE):
        base = name.rpartition("/")[2]
        if base.startswith("python") or base in ("sh", "bash", "busybox"):
            found[name] = link or None
    return found


def writer_version(name: str, tool: str) -> tuple[int, ...]:
    """The numbers of a program's version; (0,) if it does not say."""
    said = _process.run([tool, "-version" if name == "mksquashfs" else "--version"], check=False).stdout
    found = re.search(rb"\d+(\.\d+)+", said)
    return tuple(map(int, found[0].split(b"."))) if found else (0,)


class SquashfsWriter:
    """Writes one squashfs from a tar stream; a context manager.

    Leaving the block without :meth:`finish` kills the program and removes the file.
    """

    def __init__(self, path: str, options: SquashfsOptions) -> None:
        self._path = path
        self.tool, program = writer_program()
        argv = writer_argv(self.tool, program, path, options)
        try:
            # Held open to the end: tar2sqfs removes its file when it fails, and with it the sign of a full disk.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreError(f"{path} cannot be written", error.strerror or str(error)) from error
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # a pipe that nobody reads could block the program
        try:
            self._program = _process.spawn(
                argv,
                stdin=_process.PIPE,
                stdout=self._messages,
                stderr=self._messages,
                # Ctrl-C goes to us, and we end it; it must not write half an answer to a terminal.
                start_new_session=True,
            )
        except BaseException:
            self._release()
            raise
        assert self._program.stdin is not None
        self._pipe = self._program.stdin.fileno()
        # The default of 64 KiB costs sixteen times the switches between the two processes.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._pipe, _F_SETPIPE_SZ, 1 << 20)
        self._finished = False
        self._collected = bytearray()

    def __enter__(self) -> SquashfsWriter:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def write(self, data: bytes | memoryview) -> None:
        """Pass some bytes of the tar on; small pieces are collected.

        Raises:
            StoreFull: no space is left.
            ToolFailed: the program has ended before its input did.
        """
        if len(data) < _SMALL:
            self._collected += data
            if len(self._collected) < _COLLECT:
                return
            data = b""
        if self._collected:
            collected, self._collected = self._collected, bytearray()
            self._send(memoryview(collected))
        self._send(memoryview(data))

    def _send(self, view: memoryview) -> None:
        try:
            while view:
                view = view[os.write(self._pipe, view) :]
        except BrokenPipeError:
            raise self._failure() from None

    def finish(self) -> Superblock:
        """End the tar, wait for the program and check what it wrote.

        Raises:
            StoreFull: no space is left.
            ToolFailed: the program failed.
        """
        assert self._program.stdin is not None
        self._send(memoryview(self._collected))
        self._program.stdin.close()
        if self._program.wait() != 0:
            raise self._failure()
        found = read_superblock(self._path)
        self._finished = True
        self._messages.close()
        os.close(self._file)
        return found

    def close(self) -> None:
        """Kill the program and remove the file, unless finished.  Idempotent."""
        if self._finished:
            return
        self._finished = True
        self._program.kill()
        self._program.wait()
        with contextlib.suppress(OSError):
            if self._program.stdin is not None:
                self._program.stdin.close()
        self._release()

    def _release(self) -> None:
        self._messages.close()
        os.close(self._file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _failure(self) -> StoreFull | ToolFailed:
        status = self._program.wait()
        self._messages.seek(0)
        said = _process.tail(self._messages)
        directory = os.path.dirname(self._path)
        if self._is_full():
            return StoreFull(
                f"No space is left in {directory}", said, "Make room (udi gc), or set UDI_STORE to another file system."
            )
        return ToolFailed(f"{self.tool} failed with {_process.describe_status(status)}", said)

    def _is_full(self) -> bool:
        """Whether the file cannot grow, for want of room or quota: tar2sqfs calls every failed write an I/O error."""
        try:
            written = os.pwrite(self._file, bytes(_PROBE), os.fstat(self._file).st_size)
            os.fsync(self._file)  # network file systems tell it no sooner
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        return written < _PROBE
