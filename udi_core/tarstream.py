"""Tar entries of a stream of pieces, passed on or left out without taking them apart.

What passes is not copied: a run of entries that pass is one slice of the piece they came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from udi_core import tarheader
from udi_core.errors import CorruptImage, HostileImage, UnsupportedImage
from udi_core.tarheader import BLOCK, DIRECTORY, REGULAR, SPARSE


class Entry:
    """The entry that is being looked at; one object, filled anew for each.

    Attributes:
        path: name as the layer writes it.
        type: type flag, one byte.
        link: link target, b"" if it has none.
        size: bytes of content in the stream.
        header: the ustar block.
        records: of its extended header.
    """

    __slots__ = ("extra", "header", "link", "path", "records", "size", "start", "type")

    path: bytes
    type: bytes
    link: bytes
    size: int
    header: bytes
    records: dict[bytes, bytes]
    extra: bytes
    start: int


class TarStream:
    """Iterate, and for each entry call exactly one of :meth:`keep`, :meth:`drop`, :meth:`rewrite`.

    Raises:
        CorruptImage: the stream ends inside an entry, or a header cannot be read.
        HostileImage: an extended header is larger than ``header_limit`` bytes.
    """

    def __init__(
        self, pieces: Iterator[bytes], put: Callable[[bytes | memoryview], None], what: str, header_limit: int
    ) -> None:
        self._pieces, self._put, self._what, self._header_limit = pieces, put, what, header_limit
        self._buffer = b""
        self._position = 0
        self._run = 0  # where the run of entries that pass begins
        self._start = 0  # where the current entry begins

    def __iter__(self) -> Iterator[Entry]:
        entry = Entry()
        common: dict[bytes, bytes] = {}
        while True:
            self._start = self._position
            records: dict[bytes, bytes] = dict(common) if common else {}
            while True:
                start = self._position
                if len(self._buffer) - start < BLOCK and not self._have(BLOCK):
                    if self._position == len(self._buffer) and self._start == self._position:
                        return  # no end marker: GNU tar and umoci accept that
                    raise self._truncated()
                start = self._position
                header = self._buffer[start : start + BLOCK]
                flag = header[156:157]
                self._position = start + BLOCK
                if flag in b"xgLK" and flag != b"":
                    body = self._extension(header)
                    if flag == b"x":
                        records.update(tarheader.parse_pax(body))
                    elif flag == b"g":
                        common.update(tarheader.parse_pax(body))
                        records.update(common)
                    else:
                        records[b"path" if flag == b"L" else b"linkpath"] = body.partition(b"\0")[0]
                    continue
                break
            if not header[0] and not any(header):
                self._position = start
                return
            try:
                digits = header[124:135]
                size = int(digits, 8) if digits.isdigit() else tarheader.number(header[124:136])
                if b"size" in records:
                    size = int(records[b"size"])
            except ValueError:
                raise CorruptImage(f"{self._what} has a header that cannot be read", repr(header[:100])) from None
            if size < 0:
                raise HostileImage(f"{self._what} has an entry of negative size", repr(header[:100]))
            path = records.get(b"path") or tarheader.name(header)
            if flag in REGULAR:
                # Before POSIX, a directory was a file whose name ends in a slash.
                if path[-1:] == b"/":
                    flag = DIRECTORY
                    size = 0
            elif flag == SPARSE:
                self._sparse(header)
            elif flag in tarheader.KNOWN:
                size = 0  # some writers give links the size of their target; no content follows
            else:
                if not tarheader.checksum_ok(header):
                    raise CorruptImage(f"{self._what} has a header whose checksum is wrong", repr(header[:100]))
                raise UnsupportedImage(f"{self._what} has an entry of unknown type", f"{flag!r}: {path!r}")
            if b"\0" in path:
                raise HostileImage(f"{self._what} has a name with a NUL byte", repr(path))
            entry.path, entry.type, entry.size, entry.header, entry.records = path, flag, size, header, records
            link = records.get(b"linkpath")
            entry.link = (link or header[157:257].partition(b"\0")[0]) if flag in b"12" else b""
            entry.extra = self._buffer[start + BLOCK : self._position] if flag == SPARSE else b""
            if common:
                records.update({key: value for key, value in common.items() if key not in records})
            yield entry

    def keep(self, entry: Entry) -> None:
        """Let the entry pass as it is."""
        if entry.type not in REGULAR and entry.type != SPARSE and entry.header[124:135].strip(b"0 \0"):
            self.rewrite(entry, entry.path.rstrip(b"/"), entry.link)
            return
        end = self._position + entry.size + (-entry.size % BLOCK)
        if end <= len(self._buffer):
            self._position = end
        else:
            self._put(memoryview(self._buffer)[self._run :])
            self._beyond(end - len(self._buffer), self._put)

    def drop(self, entry: Entry) -> None:
        """Leave the entry out."""
        self._flush()
        end = self._position + entry.size + (-entry.size % BLOCK)
        if end <= len(self._buffer):
            self._position = self._run = end
        else:
            self._beyond(end - len(self._buffer), None)

    def rewrite(self, entry: Entry, path: bytes, link: bytes = b"", behind: bytes = b"") -> None:
        """Let the entry pass under another name, and with another link target if it is a link.

        ``behind`` are whole entries to be written behind it.
        """
        self._flush()
        records = {key: value for key, value in entry.records.items() if key not in (b"path", b"linkpath", b"size")}
        records[b"path"] = path
        if entry.type in b"12":
            records[b"linkpath"] = link or entry.link
        if b"size" in entry.records:
            records[b"size"] = b"%d" % entry.size
        size = None if entry.type in REGULAR or entry.type == SPARSE else 0
        self._put(tarheader.format_pax(records) + tarheader.renamed(entry.header, size) + entry.extra)
        self._run = self._position
        end = self._position + entry.size + (-entry.size % BLOCK)
        if end <= len(self._buffer):
            self._position = end
        else:
            self._put(memoryview(self._buffer)[self._run :])
            self._beyond(end - len(self._buffer), self._put)
        if behind:
            self._start = self._position
            self._flush()
            self._put(behind)

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

    def _extension(self, header: bytes) -> bytes:
        try:
            size = tarheader.number(header[124:136])
        except ValueError:
            size = -1
        if not 0 <= size <= self._header_limit:
            raise HostileImage(f"{self._what} has an extended header of {size} bytes", repr(header[:100]))
        padded = size + (-size % BLOCK)
        if not self._have(padded):
            raise self._truncated()
        body = self._buffer[self._position : self._position + size]
        self._position += padded
        return body

    def _sparse(self, header: bytes) -> None:
        """Old GNU sparse members: further blocks of the map stand between header and content."""
        more = header[482]
        while more:
            if not self._have(BLOCK):
                raise self._truncated()
            more = self._buffer[self._position + 504]
            self._position += BLOCK

    def _truncated(self) -> CorruptImage:
        return CorruptImage(f"{self._what} ends inside an entry", "The tar stream is cut off.", "Pull it again.")
