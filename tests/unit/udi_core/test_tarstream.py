"""Tar streams: what passes untouched, what is written anew, and how each odd header is read."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest

from tests.support import oci
from udi_core import tarheader
from udi_core.errors import CorruptImage, HostileImage, UdiError, UnsupportedImage
from udi_core.tarstream import Entry, TarStream

END = bytes(1024)


def pass_on(data: bytes, size: int = 1 << 20, drop: tuple[bytes, ...] = ()) -> tuple[bytes, list[dict[str, Any]]]:
    """What passes of a tar that comes in pieces of ``size`` bytes, and what its entries were."""
    out = bytearray()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    stream = TarStream(iter(pieces), out.extend, "The layer")
    seen = []
    for entry in stream:
        seen.append(facts(entry))
        if entry.path in drop:
            stream.drop(entry)
        else:
            stream.keep(entry, entry.path)
    stream.finish()
    return bytes(out), seen


def facts(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in ("path", "kind", "link", "size", "plain", "dropped")}


def header(**changes: bytes) -> bytes:
    """A header of an empty file, with bytes put at ``at_OFFSET``, sealed unless they are the checksum."""
    made = bytearray(oci.tar([oci.file("name")], tarfile.USTAR_FORMAT)[:512])
    for place, value in changes.items():
        offset = int(place.removeprefix("at_"))
        made[offset : offset + len(value)] = value
    return bytes(made) if "at_148" in changes else tarheader.seal(made)


def extension(kind: bytes, body: bytes) -> bytes:
    made = bytearray(header(at_124=b"%011o\0" % len(body)))
    made[156:157] = kind
    return tarheader.seal(made) + body + bytes(-len(body) % 512)


def record(key: bytes, value: bytes) -> bytes:
    return tarheader.format_pax({key: value})[512:].rstrip(b"\0")


@pytest.mark.parametrize("size", [1, 511, 512, 513, 5000, 1 << 20])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_entries_pass_untouched(format: int, size: int) -> None:
    entries = [
        oci.directory("d", mtime=5),
        oci.file("d/f", b"x" * 1500),
        oci.file("d/empty"),
        oci.symlink("d/s", "f"),
        oci.hardlink("d/h", "d/f"),
        oci.device("d/c", 1, 3),
        oci.fifo("d/p"),
        *([] if format == tarfile.USTAR_FORMAT else [oci.file("n" * 200, "y"), oci.symlink("l", "t" * 150)]),
    ]
    data = oci.tar(entries, format)
    out, seen = pass_on(data, size)
    assert all(each["plain"] for each in seen)
    assert data.startswith(out)
    assert not data[len(out) :].strip(b"\0")
    assert [each["path"].rstrip(b"/") for each in seen] == [entry.info.name.encode() for entry in entries]


@pytest.mark.parametrize("size", [1, 700, 1 << 20])
def test_what_is_dropped_is_cut_out(size: int) -> None:
    entries = [oci.file(str(n), bytes([n]) * 700) for n in range(5)]
    out, _ = pass_on(oci.tar(entries), size, drop=(b"0", b"2", b"4"))
    assert out == oci.tar([entries[1], entries[3]]).rstrip(b"\0") + bytes(-len(out.rstrip(b"\0")) % 512)


def unpack(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data + END)) as archive:
        return [(info, file.read() if (file := archive.extractfile(info)) else b"") for info in archive.getmembers()]


CONTENT = b"content".ljust(512, b"\0")


@pytest.mark.parametrize(
    ("data", "path", "plain"),
    [
        # tar2sqfs forgets a long name at the extended header behind it, Go takes the long name.
        (extension(b"L", b"long\0") + extension(b"x", record(b"path", b"other")), b"long", False),
        (extension(b"x", record(b"path", b"other")) + extension(b"L", b"long\0"), b"long", False),
        (extension(b"x", record(b"path", b"one")) + extension(b"x", record(b"mtime", b"1")), b"name", False),
        # Global records are applied by nobody who unpacks layers.
        (extension(b"g", record(b"path", b"global")), b"name", False),
        # tar2sqfs skips blanks in front of a key, and takes an empty path for the root.
        (extension(b"x", record(b" path", b"other")), b"name", False),
        (extension(b"x", b"8 path=\n"), b"name", False),
        (extension(b"x", record(b"path", b"one") + record(b"path", b"two")), b"two", False),
        (extension(b"x", record(b"path", b"one")), b"one", True),
        (extension(b"x", record(b"SCHILY.xattr.user.a", b"1")), b"name", True),
        (extension(b"x", record(b"SCHILY.xattr.system.a", b"1")), b"name", False),
        (extension(b"x", record(b"LIBARCHIVE.xattr.user.a", b"MQ")), b"name", False),
        (extension(b"L", b"long\0"), b"long", True),
    ],
)
def test_readers_that_disagree_get_what_we_read(data: bytes, path: bytes, plain: bool) -> None:
    out, seen = pass_on(data + header(at_124=b"%011o\0" % 7) + CONTENT + END)
    assert [(each["path"], each["plain"]) for each in seen] == [(path, plain)]
    [(info, content)] = unpack(out)
    assert (info.name.encode(), content) == (path, b"content")
    assert (b"xgL".count(out[156]) == 1) == (data != b"")


@pytest.mark.parametrize(
    ("size", "plain"),
    [
        (b"00000000007\0", True),
        (b"00000000007 ", True),
        (b"000000000007", False),  # twelve digits
        (b"7\0" + bytes(10), False),
        (b"\0\0\0007" + bytes(8), False),
        (b"          7 ", False),
        (b"\x80" + bytes(10) + b"\x07", False),
    ],
)
def test_sizes_in_any_notation(size: bytes, plain: bool) -> None:
    out, [seen] = pass_on(header(at_124=size) + CONTENT + END)
    assert (seen["size"], seen["plain"]) == (7, plain)
    [(_, content)] = unpack(out)
    assert content == b"content"


def test_a_size_beyond_what_octal_can_say() -> None:
    _, [seen] = pass_on(header(at_124=b"\x80" + (1 << 40).to_bytes(11, "big"), at_156=b"5") + END)
    assert seen["size"] == 0  # a directory has no content, whatever it says
    with pytest.raises(CorruptImage, match="ends inside an entry"):
        pass_on(header(at_124=b"\x80" + (1 << 40).to_bytes(11, "big")) + END)


def test_old_directories_are_files_whose_name_ends_in_a_slash() -> None:
    out, [seen] = pass_on(header(at_0=b"dir/\0", at_156=b"\0", at_124=b"%011o\0" % 7, at_257=bytes(8)) + END)
    assert (seen["kind"], seen["size"], seen["plain"]) == (tarheader.DIRECTORY, 0, False)
    [(info, _)] = unpack(out)
    assert info.isdir()


def test_signed_checksums_of_old_writers_are_put_right() -> None:
    made = bytearray(header(at_0=b"\xe4\xf6\xfc\0"))
    made[148:156] = b"%06o\0 " % (sum(byte - 256 if byte > 127 else byte for byte in made[:148] + made[156:]) + 256)
    out, [seen] = pass_on(bytes(made) + END)
    assert (seen["path"], seen["plain"]) == (b"\xe4\xf6\xfc", False)
    assert tarheader.checksum_fits(out[:512])


def test_unknown_magic_is_made_known() -> None:
    out, [seen] = pass_on(header(at_257=b"ustar\0\0\0") + END)
    assert not seen["plain"]
    assert out[257:265] == tarheader.POSIX


def test_a_prefix_belongs_to_the_name_in_posix_only() -> None:
    assert pass_on(header(at_345=b"prefix\0") + END)[1][0]["path"] == b"prefix/name"
    assert pass_on(header(at_345=b"prefix\0", at_257=b"ustar  \0") + END)[1][0]["path"] == b"name"
    star = header(at_345=b"p" * 131, at_476=b"00000000000 ", at_508=b"tar\0")
    assert pass_on(star + END)[1][0]["path"] == b"p" * 131 + b"/name"


def test_attributes_that_no_squashfs_holds_are_named() -> None:
    data = extension(b"x", record(b"SCHILY.xattr.system.a", b"1") + record(b"SCHILY.xattr.user.b", b"2")) + header()
    out, [seen] = pass_on(data + END)
    assert seen["dropped"] == [b"system.a"]
    assert b"SCHILY.xattr.user.b=2\n" in out
    assert b"system" not in out


def test_large_extended_headers_lose_what_nobody_reads() -> None:
    data = extension(b"x", record(b"comment", b"c" * 70000)) + header() + END
    out, [seen] = pass_on(data)
    assert not seen["plain"]
    assert len(out) < 3000
    with pytest.raises(UnsupportedImage, match="more extended attributes"):
        pass_on(extension(b"x", record(b"SCHILY.xattr.user.a", b"c" * 70000)) + header() + END)


@pytest.mark.parametrize(
    ("error", "match", "data"),
    [
        (CorruptImage, "checksum", header(at_148=b"000001\0 ")),
        (CorruptImage, "checksum", header(at_148=b"garbage!")),
        (CorruptImage, "goes on behind its end", bytes(512) + header()),
        (CorruptImage, "ends inside", header()[:100]),
        (CorruptImage, "ends inside", header(at_124=b"%011o\0" % 700) + bytes(512)),
        (CorruptImage, "ends inside", extension(b"x", record(b"path", b"p"))),
        (CorruptImage, "ends inside", extension(b"x", record(b"path", b"p")) + bytes(1024)),
        (CorruptImage, "ends inside", extension(b"L", b"l" * 600)[:1024]),
        (CorruptImage, "number", header(at_124=b"0000000000x\0")),
        (CorruptImage, "number", header(at_124=b"00000000009\0")),
        (CorruptImage, "number", header(at_108=b"garbage\0")),
        (CorruptImage, "number", extension(b"x", record(b"size", b"1_0")) + header()),
        (CorruptImage, "number", extension(b"x", record(b"uid", b"0x1")) + header()),
        (CorruptImage, "number", header(at_156=b"3", at_329=b"\x80\0\0\0\0\1\0\0")),
        (CorruptImage, "time", extension(b"x", record(b"mtime", b"soon")) + header()),
        (CorruptImage, "extended header", extension(b"x", b"9 path=xx")),
        (CorruptImage, "extended header", extension(b"x", b"99 path=x\n")),
        (CorruptImage, "extended header", extension(b"x", b"-9 path=x\n")),
        (CorruptImage, "extended header", extension(b"x", b"9 pathxx\n")),
        (CorruptImage, "extended header", extension(b"x", b"11 pa\0th=x\n")),
        (HostileImage, "negative", header(at_124=b"\xff" * 12)),
        (HostileImage, "negative", extension(b"x", record(b"size", b"-1")) + header()),
        (HostileImage, "owner", header(at_108=b"\xff" * 8)),
        (HostileImage, "owner", extension(b"x", record(b"gid", b"4294967295")) + header()),
        (HostileImage, "NUL", extension(b"x", record(b"path", b"a\0b")) + header()),
        (HostileImage, "NUL", extension(b"x", record(b"linkpath", b"a\0b")) + header(at_156=b"2")),
        (HostileImage, "extended header of", header(at_124=b"77777777777\0", at_156=b"x")),
        (HostileImage, "extended header of", header(at_124=b"\xff" * 12, at_156=b"L")),
        (UnsupportedImage, "unknown type", header(at_156=b"V")),
        (UnsupportedImage, "unknown type", header(at_156=b"M")),
    ],
)
def test_what_cannot_be_read_is_refused(error: type[UdiError], match: str, data: bytes) -> None:
    if len(data) % 512 == 0 and match != "ends inside":
        data += END
    for size in (1 << 20, 100):
        with pytest.raises(error, match=match) as caught:
            pass_on(data, size)
        assert caught.type is error


def test_an_archive_may_lack_its_end_marker() -> None:
    assert len(pass_on(header())[1]) == len(pass_on(header() + bytes(512))[1]) == 1
    assert pass_on(b"") == (b"", [])


def test_what_follows_the_end_is_read_and_left_out() -> None:
    out, seen = pass_on(header() + END + b"junk" * 1000)
    assert out == header()
    assert len(seen) == 1
