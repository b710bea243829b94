"""Tar entries of a stream of pieces, passed on or left out without taking them apart.

What passes is not copied: a run of entries that pass is one slice of the piece they came in.  An entry passes as it
is only if every reader of tar reads it alike; any other is written anew, so that what a layer's reader decided
about it is what the squashfs gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from zlib import adler32

from udi_core import sparse, tarheader
from udi_core.errors import CorruptImage, HostileImage, UnsupportedImage
from udi_core.tarheader import (
    BLOCK,
    BLOCK_DEVICE,
    CHARACTER,
    CONTIGUOUS,
    DIRECTORY,
    ENDS,
    FIFO,
    FILE,
    GLOBAL,
    LINK,
    LINKS,
    LONG_LINK,
    LONG_NAME,
    MAGICS,
    OLD_FILE,
    PAX,
    POSIX,
    SPARSE,
    SYMLINK,
)

_COMMON = frozenset((FILE, LINK, SYMLINK, DIRECTORY))
_PLAIN = _COMMON | {CHARACTER, BLOCK_DEVICE, FIFO}
_EXTENSIONS = frozenset((PAX, GLOBAL, LONG_NAME, LONG_LINK))
_ZEROS = memoryview(bytes(1 << 20))
_NO_RECORDS: dict[bytes, bytes] = {}

# What tar2sqfs takes of one extended header.
_MAX_EXTENDED = 65536
_XATTR = b"SCHILY.xattr."
_KEPT_XATTRS = (b"SCHILY.xattr.user.", b"SCHILY.xattr.trusted.", b"SCHILY.xattr.security.")
_DECIMAL = re.compile(rb"[+-]?[0-9]{1,19}")
_TIME = re.compile(rb"-?[0-9]{1,19}(\.[0-9]*)?")
_NO_ID = 0xFFFFFFFF  # chown(2) takes it for "leave as it is"


class Entry:
    """The entry that is being looked at; one object, filled anew for each.

    Attributes:
        path: name as the layer writes it.
        kind: type flag; ``FILE`` for each of the flags that mean one.
        link: link target, b"" if it has none.
        size: bytes of content; holes of a sparse file included.
        plain: whether it may pass as it is.
        header: the ustar block.
        records: of its extended header.
        regions: of a sparse file, see :mod:`udi_core.sparse`; else None.
        dropped: names of extended attributes that no squashfs can hold.
    """

    __slots__ = ("dropped", "header", "kind", "link", "path", "plain", "records", "regions", "size")

    path: bytes
    kind: int
    link: bytes
    size: int
    plain: bool
    header: bytes
    records: dict[bytes, bytes]
    regions: list[tuple[int, int]] | None
    dropped: list[bytes]

    def __init__(self) -> None:
        self.records, self.regions, self.dropped, self.plain = _NO_RECORDS, None, [], True


class TarStream:
    """Iterate, and for each entry call exactly one of :meth:`keep`, :meth:`drop`, :meth:`rewrite`.

    Args:
        pieces: the uncompressed layer.
        put: takes what passes.
        what: names the layer in errors.
        header_limit: largest extended header, in bytes.
        rewrite: let no header pass as it is.

    Raises:
        CorruptImage: the stream ends inside an entry, or a header cannot be read.
        HostileImage: a value that no honest writer would write.
        UnsupportedImage: an entry that is no part of a file tree.
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        put: Callable[[bytes | memoryview], None],
        what: str,
        header_limit: int = 1 << 20,
        rewrite: bool = False,
    ) -> None:
        self._pieces, self._put, self._what, self._header_limit = pieces, put, what, header_limit
        self._may_pass = not rewrite
        self._buffer = b""
        self._position = 0
        self._run = 0  # where the run of entries that pass begins
        self._start = 0  # where the current entry begins
        self._content = 0  # bytes of the current entry that follow its headers in the stream

    def __iter__(self) -> Iterator[Entry]:
        entry = Entry()
        magics, ends = MAGICS, ENDS
        while True:
            start = self._start = self._position
            if len(self._buffer) - start < BLOCK:
                if not self._have(BLOCK):
                    if len(self._buffer) > self._position:
                        raise self._truncated()
                    return  # no end marker: GNU tar and umoci accept that
                start = self._position
            header = self._buffer[start : start + BLOCK]
            self._position = start + BLOCK
            kind = header[156]
            magic = header[257:265]
            digits = header[124:135]
            told = header[148:154]
            try:
                # As tarheader.has_plain_numbers and checksum_fits have it; calls would cost as much as all the rest.
                common = (
                    kind in _COMMON
                    and magic in magics
                    and header[0] != 0
                    and digits.isdigit()
                    and told.isdigit()
                    and header[135] in ends
                    and header[154] in ends
                    and (header[100] & header[108] & header[116] & header[136]) >= 48
                    and (header[100] | header[108] | header[116] | header[136]) < 64
                    and adler32(header[156:], adler32(header[:148])) & 0xFFFF == (int(told, 8) - 255) % 65521
                )
                size = int(digits, 8) if common else 0
            except ValueError:
                common, size = False, 0
            if common:
                end = header.find(0, 0, 100)
                entry.path = header[: end if end >= 0 else 100]
                if header[345] and magic == POSIX:
                    entry.path = tarheader.name(header)
                entry.kind = kind
                entry.header = header
                if entry.records:
                    entry.records, entry.dropped = _NO_RECORDS, []
                entry.regions = None
                entry.plain = self._may_pass
                if kind == FILE:
                    entry.link = b""
                    entry.size = self._content = size
                else:
                    entry.size = self._content = 0
                    entry.link = header[157:257].partition(b"\0")[0] if kind != DIRECTORY else b""
            elif not self._read(entry, header):
                return
            yield entry

    def keep(self, entry: Entry, path: bytes) -> None:
        """Let the entry pass as it is, if all readers understand it alike; else it is written anew as ``path``."""
        if not entry.plain:
            self.rewrite(entry, path, entry.link)
            return
        end = self._position + self._content + (-self._content % BLOCK)
        if end <= len(self._buffer):
            self._position = end
        else:
            self._put(memoryview(self._buffer)[self._run :])
            self._beyond(end - len(self._buffer), self._put)

    def drop(self, entry: Entry) -> None:
        """Leave the entry out."""
        self._flush()
        self._skip(self._content + (-self._content % BLOCK))

    def rewrite(self, entry: Entry, path: bytes, link: bytes = b"") -> None:
        """Write the entry anew, under another name, and with another link target if it is a link.

        The holes of a sparse file are filled: mksquashfs cannot read any of the formats that leave them out, and
        tar2sqfs makes holes of zeros.
        """
        self._flush()
        self._put(self._rewritten(entry, path, link))
        place = 0
        for offset, length in [(0, entry.size)] if entry.regions is None else entry.regions:
            self._fill(offset - place)
            self._copy(length)
            place = offset + length
        self._fill(entry.size - place + (-entry.size % BLOCK))
        self._skip(-self._content % BLOCK)

    def add(self, entries: bytes) -> None:
        """Write whole entries behind the one that was kept or rewritten."""
        self._start = self._position
        self._flush()
        self._put(entries)

    def peek(self, count: int) -> bytes:
        """The first bytes of the current entry's content; fewer where it has fewer."""
        count = min(count, self._content)
        return self._buffer[self._position : self._position + count] if self._have(count) else b""

    def finish(self) -> None:
        """Write what passed, and read the rest of the stream: its digest is known only at its end."""
        self._start = self._position
        self._flush()
        for _ in self._pieces:
            pass

    def _flush(self) -> None:
        """Write the run up to the current entry."""
        if self._run < self._start:
            self._put(memoryview(self._buffer)[self._run : self._start])
        self._run = self._position

    def _skip(self, count: int) -> None:
        """Leave out bytes at the position."""
        end = self._position + count
        if end <= len(self._buffer):
            self._position = self._run = end
        else:
            self._beyond(end - len(self._buffer), None)

    def _copy(self, count: int) -> None:
        """Write bytes at the position."""
        end = self._position + count
        self._put(memoryview(self._buffer)[self._position : end])
        if end <= len(self._buffer):
            self._position = self._run = end
        else:
            self._beyond(end - len(self._buffer), self._put)

    def _fill(self, count: int) -> None:
        while count > 0:
            self._put(_ZEROS[:count])
            count -= len(_ZEROS)

    def _beyond(self, count: int, put: Callable[[bytes | memoryview], None] | None) -> None:
        """Consume ``count`` bytes of the pieces that follow the buffer."""
        for piece in self._pieces:
            if count <= len(piece):
                if put is not None:
                    put(memoryview(piece)[:count])
                self._buffer, self._position, self._run = piece, count, count
                return
            count -= len(piece)
            if put is not None:
                put(piece)
        raise self._truncated()

    def _have(self, count: int) -> bool:
        """Make at least ``count`` bytes available at the position, keeping the current entry whole."""
        while len(self._buffer) - self._position < count:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            if self._run < self._start:
                self._put(memoryview(self._buffer)[self._run : self._start])
                self._run = self._start
            keep = self._run  # equal to _start, or behind it after a rewrite
            self._buffer = self._buffer[keep:] + piece
            self._position -= keep
            self._start -= keep
            self._run = 0
        return True

    def _take(self, count: int) -> bytes:
        if not self._have(count):
            raise self._truncated()
        taken = self._buffer[self._position : self._position + count]
        self._position += count
        return taken

    def _read(self, entry: Entry, header: bytes) -> bool:
        """Fill the entry from headers that are out of the common; False at the end of the archive."""
        records, name, link = _NO_RECORDS, b"", b""
        extensions = bytearray()
        plain = True
        while True:
            if not any(header):
                return self._end(bool(extensions))
            if not tarheader.checksum_fits(header):
                if not tarheader.signed_checksum_fits(header):
                    raise CorruptImage(f"{self._what} has a header whose checksum is wrong", repr(header[:100]))
                plain = False
            kind = header[156]
            plain = plain and header[257:265] in MAGICS
            if kind not in _EXTENSIONS:
                break
            body = self._extension(header)
            extensions.append(kind)
            plain = plain and tarheader.has_plain_numbers(header) and 0 < len(body) <= _MAX_EXTENDED
            if kind == PAX:
                records, clean = tarheader.parse_pax(body)
                plain = plain and clean
            elif kind == LONG_NAME:
                name = body.partition(b"\0")[0]
            elif kind == LONG_LINK:
                link = body.partition(b"\0")[0]
            header = self._take(BLOCK)
        # tar2sqfs forgets at an extended header what came before, and leaves global ones out, as containerd does.
        plain = plain and (not extensions or extensions == b"x" or (set(extensions) <= {LONG_NAME, LONG_LINK}))
        entry.header, entry.records, entry.regions = header, records, None
        entry.path = name or records.get(b"path") or tarheader.name(header)
        entry.link = b""
        if kind in LINKS:
            entry.link = link or records.get(b"linkpath") or header[157:257].partition(b"\0")[0]
        if kind == OLD_FILE:
            # Before POSIX, a directory was a file whose name ends in a slash.
            kind = DIRECTORY if entry.path[-1:] == b"/" else FILE
            plain = False
        elif kind in (CONTIGUOUS, SPARSE):
            plain = False
        elif kind not in _PLAIN:
            raise UnsupportedImage(f"{self._what} has an entry of unknown type", f"{chr(kind)!r}: {entry.path!r}")
        entry.kind = FILE if kind in (CONTIGUOUS, SPARSE) else kind
        entry.plain = self._values(entry, kind) and plain and self._may_pass
        if b"\0" in entry.path or b"\0" in entry.link:
            raise HostileImage(f"{self._what} has a name with a NUL byte", repr(entry.path))
        return True

    def _values(self, entry: Entry, kind: int) -> bool:
        """Check the numbers and records of an entry and find its size; whether all readers see them alike."""
        header, records = entry.header, entry.records
        plain = tarheader.has_plain_numbers(header) and all(
            records[key].isdigit() for key in (b"size", b"uid", b"gid") if key in records
        )
        try:
            size = _number(records, b"size", header[124:136])
            owner = [_number(records, b"uid", header[108:116]), _number(records, b"gid", header[116:124])]
            if kind in (CHARACTER, BLOCK_DEVICE):
                tarheader.rebuilt(header, kind)
                plain = plain and header[329] < 128 and header[337] < 128
        except ValueError:
            raise CorruptImage(f"{self._what} has a number that cannot be read", _about(entry)) from None
        if size < 0:
            raise HostileImage(f"{self._what} has an entry of negative size", _about(entry))
        if not all(0 <= each < _NO_ID for each in owner):
            raise HostileImage(f"{self._what} has an owner that Linux does not have", _about(entry))
        if b"mtime" in records:
            if not _TIME.fullmatch(records[b"mtime"]):
                raise CorruptImage(f"{self._what} has a time that cannot be read", _about(entry))
            plain = plain and b"." in records[b"mtime"]  # mksquashfs insists on the point
        entry.size = self._content = size if entry.kind == FILE else 0
        if kind == SPARSE:
            entry.regions, entry.size = sparse.read_old(header, self._take, self._what)
        elif entry.kind == FILE and sparse.is_sparse(records):
            plain = False
            entry.path = records.get(b"GNU.sparse.name") or entry.path
            entry.regions, entry.size, taken = sparse.read_pax(records, self._content, self._take, self._what)
            self._content -= taken
        if entry.regions is not None:
            sparse.check(entry.regions, entry.size, self._content, self._what)
        entry.dropped = [
            key[len(_XATTR) :] for key in records if key[:13] == _XATTR and not key.startswith(_KEPT_XATTRS)
        ]
        return (
            plain
            and not entry.dropped
            and not any(key[:1].isspace() or key.startswith((b"GNU.sparse", b"LIBARCHIVE.xattr")) for key in records)
        )

    def _rewritten(self, entry: Entry, path: bytes, link: bytes) -> bytes:
        """Extended header and header of an entry."""
        header, old = entry.header, entry.records
        records = {b"path": path}
        if entry.kind in LINKS:
            records[b"linkpath"] = link or entry.link
        try:
            records[b"uid"] = b"%d" % _number(old, b"uid", header[108:116])
            records[b"gid"] = b"%d" % _number(old, b"gid", header[116:124])
            time = old.get(b"mtime") or b"%d" % tarheader.number(header[136:148])
            records[b"mtime"] = time if b"." in time else time + b".0"
            block = tarheader.rebuilt(header, entry.kind)
        except ValueError:
            raise CorruptImage(f"{self._what} has a number that cannot be read", _about(entry)) from None
        if entry.kind == FILE:
            records[b"size"] = b"%d" % entry.size
        records |= {key: value for key, value in old.items() if key.startswith(_KEPT_XATTRS)}
        extended = tarheader.format_pax(records)
        if len(extended) > _MAX_EXTENDED:
            raise UnsupportedImage(
                f"{self._what} has an entry with more extended attributes than a file can have", _about(entry)
            )
        return extended + block

    def _extension(self, header: bytes) -> bytes:
        try:
            size = tarheader.number(header[124:136])
        except ValueError:
            size = -1
        if not 0 <= size <= self._header_limit:
            raise HostileImage(f"{self._what} has an extended header of {size} bytes", repr(header[:100]))
        return self._take(size + (-size % BLOCK))[:size]

    def _end(self, inside: bool) -> bool:
        """A block of zeros has come: the end, if another one or nothing follows."""
        if inside:
            raise self._truncated()
        if self._have(BLOCK) and any(self._buffer[self._position : self._position + BLOCK]):
            raise CorruptImage(f"{self._what} goes on behind its end", "Entries follow a block of zeros.")
        self._position -= BLOCK
        return False

    def _truncated(self) -> CorruptImage:
        return CorruptImage(f"{self._what} ends inside an entry", "The tar stream is cut off.", "Pull it again.")


def _number(records: dict[bytes, bytes], key: bytes, field: bytes) -> int:
    """A number by its record, else by its field in the header."""
    text = records.get(key)
    if text is None:
        return tarheader.number(field)
    if not _DECIMAL.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _about(entry: Entry) -> str:
    return f"{entry.path!r}, header {entry.header[100:156]!r}"
