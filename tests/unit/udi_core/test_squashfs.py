"""Squashfs files: written, refused, and left behind by nobody."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import oci
from udi_core import _process, squashfs
from udi_core.errors import CorruptImage, StoreFull, ToolFailed, ToolMissing
from udi_core.squashfs import SquashfsOptions, SquashfsWriter, read_superblock, writer_argv, writer_program

needs_tar2sqfs = pytest.mark.needs("tar2sqfs")

ENTRIES = [
    oci.directory("d", 0o755),
    *(oci.file(f"d/f{n}", bytes([n]) * (n * 3000)) for n in range(100)),
    oci.file("large", os.urandom(3_000_000)),
    oci.file("undeclared/parent", "x"),
]
TAR = oci.tar(ENTRIES)


def write(path: Path, data: bytes = TAR, *, piece: int = 1 << 20, options: SquashfsOptions | None = None) -> str:
    """The digest of the squashfs that is written."""
    with SquashfsWriter(str(path), options or SquashfsOptions()) as writer:
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
        writer.finish()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _children() -> set[str]:
    """Process ids of this thread's children, zombies included (proc_pid_task(5))."""
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


@pytest.fixture
def no_children() -> Iterator[None]:
    """Programs that a test started are gone, and waited for, when it ends."""
    before = _children()
    yield
    assert _children() <= before  # other tests' libraries may keep a process of their own


@needs_tar2sqfs
def test_the_superblock_says_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "image.squashfs"
    write(path, options=SquashfsOptions(block_size=65536))
    found = read_superblock(str(path))
    assert (found.compression, found.block_size, found.modified, found.version) == ("zstd", 65536, 0, (4, 0))
    assert found.inodes == len(ENTRIES) + 2  # the root, and the directory that nobody declared
    assert found.size <= path.stat().st_size < found.size + 4096


@needs_tar2sqfs
@pytest.mark.parametrize("compression", ["zstd", "gzip", "lz4", "xz"])
def test_compressions(tmp_path: Path, compression: str) -> None:
    write(tmp_path / "x", options=SquashfsOptions(compression=compression, level=1))
    assert read_superblock(str(tmp_path / "x")).compression == compression


@needs_tar2sqfs
def test_the_same_tar_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of processors, the sizes of writes, the clock and the environment are."""
    first = write(tmp_path / "1")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)))
    monkeypatch.setattr(squashfs, "_BACKLOG", 0)
    assert write(tmp_path / "2", piece=777) == first


@needs_tar2sqfs
def test_a_full_disk_is_told_as_such(tmp_path: Path, no_children: None) -> None:
    (tmp_path / "image").symlink_to("/dev/full")
    with pytest.raises(StoreFull) as caught:
        write(tmp_path / "image", oci.tar([oci.file("f", os.urandom(30_000_000))]))
    assert caught.value.exit_code == 74
    assert "udi gc" in caught.value.hint
    assert not os.path.lexists(tmp_path / "image")


@needs_tar2sqfs
def test_a_tar_that_makes_no_sense_fails(tmp_path: Path, no_children: None) -> None:
    with pytest.raises(ToolFailed, match="not a ustar tar archive"):
        write(tmp_path / "image", TAR[:512] + b"x" * 1024)
    assert os.listdir(tmp_path) == []


@needs_tar2sqfs
def test_leaving_early_kills_the_program_and_removes_the_file(tmp_path: Path, no_children: None) -> None:
    with pytest.raises(KeyboardInterrupt), SquashfsWriter(str(tmp_path / "image"), SquashfsOptions()) as writer:
        writer.write(TAR[:1_000_000])
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@needs_tar2sqfs
def test_a_program_that_is_killed_is_noticed(tmp_path: Path, no_children: None) -> None:
    with pytest.raises(ToolFailed, match="signal 9"), SquashfsWriter(str(tmp_path / "x"), SquashfsOptions()) as writer:
        os.kill(writer._program.pid, signal.SIGKILL)
        for _ in range(100):
            writer.write(TAR)
    assert os.listdir(tmp_path) == []


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Let these shell scripts be the only programs there are."""
    for name in ("tar2sqfs", "mksquashfs"):
        path = tmp_path / name
        if name in programs:
            path.write_text(f"#!/bin/sh\n{programs[name]}\n")
            path.chmod(0o755)
        monkeypatch.setenv(f"UDI_TOOL_{name.upper()}", str(path))


def test_mksquashfs_is_the_second_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, mksquashfs='echo "mksquashfs version 4.6.1 (2023/03/25)"')
    name, tool = writer_program()
    assert (name, tool) == ("mksquashfs", str(tmp_path / "mksquashfs"))
    argv = writer_argv(name, tool, "/x/image", SquashfsOptions(block_size=4096, level=7))
    assert argv[:4] == [tool, "-", "/x/image", "-tar"]
    for pair in (("-comp", "zstd"), ("-Xcompression-level", "7"), ("-b", "4096"), ("-mkfs-time", "0")):
        assert argv[argv.index(pair[0]) + 1] == pair[1]
    fake(tmp_path, monkeypatch, mksquashfs="", tar2sqfs="")
    assert writer_program()[0] == "tar2sqfs"


@pytest.mark.parametrize("said", ["mksquashfs version 4.5.1 (2022/03/17)", "mksquashfs version 4.5", "nothing"])
def test_a_mksquashfs_that_is_too_old_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    fake(tmp_path, monkeypatch, mksquashfs=f'echo "{said}"')
    with pytest.raises(ToolMissing) as caught:
        writer_program()
    assert "squashfs-tools-ng" in caught.value.hint


def test_no_program_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch)
    with pytest.raises(ToolMissing), SquashfsWriter(str(tmp_path / "x"), SquashfsOptions()):
        pass


@needs_tar2sqfs
def test_versions_are_found() -> None:
    version = squashfs.writer_version("tar2sqfs", _process.require_tool("tar2sqfs", reason="test"))
    assert version >= (1, 0)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    if shutil.which("tar2sqfs") is None:
        pytest.skip("tar2sqfs is missing")
    write(tmp_path / "image")
    return tmp_path / "image"


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (0, b"nope", "magic"),
        (12, struct.pack("<I", 1000), "Block size"),
        (20, struct.pack("<H", 99), "compressor 99"),
        (28, struct.pack("<HH", 3, 1), "version 3.1"),
        (40, struct.pack("<Q", 1 << 60), "cut off"),
        (64, struct.pack("<Q", 1 << 50), "outside the file"),
    ],
)
def test_superblocks_that_lie_are_refused(image: Path, offset: int, value: bytes, said: str) -> None:
    with open(image, "r+b") as file:
        file.seek(offset)
        file.write(value)
    with pytest.raises(CorruptImage, match=said):
        read_superblock(str(image))


def test_files_that_are_cut_off_are_refused(image: Path) -> None:
    whole = image.read_bytes()
    for length in (0, 50, 96, len(whole) // 2, len(whole) - 4096):
        image.write_bytes(whole[:length])
        with pytest.raises(CorruptImage):
            read_superblock(str(image))
    image.write_bytes(b"before" + whole)
    assert read_superblock(str(image), 6).inodes


@pytest.mark.needs("tar2sqfs", "unsquashfs")
def test_programs_are_listed(tmp_path: Path) -> None:
    entries = [
        oci.file("usr/bin/bash", "x"),
        oci.symlink("usr/bin/sh", "bash"),
        oci.symlink("bin", "usr/bin"),
        oci.file("usr/local/bin/python3.12", "x"),
        oci.symlink("usr/local/bin/python3", "python3.12"),
        oci.file("usr/bin/other", "x"),
    ]
    write(tmp_path / "x", oci.tar(entries))
    assert squashfs.list_programs(str(tmp_path / "x")) == {
        "usr/bin/bash": None,
        "usr/bin/sh": "bash",
        "usr/local/bin/python3.12": None,
        "usr/local/bin/python3": "python3.12",
    }


@needs_tar2sqfs
def test_a_writer_that_dies_leaves_no_program_behind(tmp_path: Path) -> None:
    """The program sees the end of its input, whatever became of the writer."""
    script = (
        "import os, sys\n"
        "from udi_core.squashfs import SquashfsOptions, SquashfsWriter\n"
        f"writer = SquashfsWriter({str(tmp_path / 'x')!r}, SquashfsOptions())\n"
        "print(writer._program.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    pid = int(done.stdout)
    for _ in range(600):
        if not os.path.exists(f"/proc/{pid}"):
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail("tar2sqfs is still running")
