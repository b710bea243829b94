"""One layer: its bytes decompressed and checked, and the headers of its tar entries.

Sources: OCI image-spec layer.md; POSIX pax(1) "ustar Interchange Format" and "pax Extended Header"; the GNU tar
manual, "Basic Tar Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from udi_core import digest as digests
from udi_core.errors import CorruptImage, UnsupportedImage
from udi_core.manifest import LAYER_TYPES, Descriptor

#: Decompressed bytes in one piece, and how many pieces wait between two threads.
PIECE = 1 << 20
_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInput:
    """A layer to be merged.

    Attributes:
        descriptor: media type, digest and size of the blob.
        diff_id: digest of the uncompressed tar.
        open: begins a new stream of the compressed bytes, whose digest the stream itself checks.
    """

    descriptor: Descriptor
    diff_id: str
    open: Callable[[], Iterator[bytes]]


def read_layer(layer: LayerInput, consumed: Callable[[int], None] = lambda count: None) -> PieceStream:
    """Begin to read a layer: fetching, decompressing and hashing run in two threads of their own.

    ``consumed`` is called with the compressed size of each chunk.
    """
    kind = LAYER_TYPES.get(layer.descriptor.media_type)
    if kind is None:
        raise UnsupportedImage(
            f"UDI cannot read layers of type {layer.descriptor.media_type!r}", layer.descriptor.digest
        )
    fetched = PieceStream(_counted(layer.open(), consumed))
    return PieceStream(_verified(_decompressed(fetched, kind, layer), layer), fetched)


class PieceStream:
    """An iterator that is run ahead by a thread; an error of the thread is raised where the piece was due.

    ``close`` may be called at any time, more than once; it ends the thread.
    """

    def __init__(self, pieces: Iterator[bytes], *upstream: PieceStream) -> None:
        self._pieces, self._upstream = pieces, upstream
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="udi-layer", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        end: BaseException | None = None
        try:
            for piece in self._pieces:
                if not self._put(piece):
                    return
        except BaseException as error:
            end = error
        finally:
            close: Callable[[], None] | None = getattr(self._pieces, "close", None)
            if close is not None and self._closed.is_set():
                close()
        self._put(end)

    def _put(self, item: bytes | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                item = self._queue.get(timeout=1)
            except queue.Empty:
                if self._closed.is_set():
                    return
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        self._closed.set()
        for each in self._upstream:
            each.close()
        self._thread.join()


def _counted(chunks: Iterator[bytes], consumed: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        consumed(len(chunk))
        yield chunk


def _verified(pieces: Iterator[bytes], layer: LayerInput) -> Iterator[bytes]:
    state = hashlib.new(layer.diff_id.partition(":")[0])
    for piece in pieces:
        state.update(piece)
        yield piece
    found = f"{state.name}:{state.hexdigest()}"
    if found != layer.diff_id:
        raise digests.mismatch(f"The uncompressed layer {layer.descriptor.digest}", layer.diff_id, found)


def _decompressed(chunks: PieceStream, kind: str, layer: LayerInput) -> Iterator[bytes]:
    if not kind:
        yield from chunks
        return
    decompress = _gunzip if kind == "gzip" else _unzstd
    try:
        yield from decompress(iter(chunks))
    except _Truncated as error:
        raise CorruptImage(
            f"Layer {layer.descriptor.digest} ends too early", f"The {kind} stream is cut off.", "Pull it again."
        ) from error
    except (CorruptImage, OSError):
        raise
    except Exception as error:
        if type(error).__module__.startswith(("isal", "igzip", "zlib", "zstd", "zstandard")):
            raise CorruptImage(
                f"Layer {layer.descriptor.digest} cannot be decompressed",
                f"{kind}: {error}",
                "Pull it again; if it stays so, the image must be pushed anew.",
            ) from error
        raise


class _Truncated(Exception):
    pass


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    from isal import isal_zlib  # three times as fast as zlib

    state: Any = None
    for chunk in chunks:
        while chunk:
            if state is None:
                # RFC 1952: members follow each other; pigz and estargz write many.  Padding zeros may end the file.
                chunk = chunk.lstrip(b"\0")
                if not chunk:
                    break
                state = isal_zlib.decompressobj(wbits=31)
            piece = state.decompress(chunk, PIECE)
            while True:
                if piece:
                    yield piece
                if state.eof or not state.unconsumed_tail:
                    break
                piece = state.decompress(state.unconsumed_tail, PIECE)
            if state.eof:
                chunk, state = state.unused_data, None
            else:
                # A full piece may leave output inside the decompressor; the next call brings it out.
                chunk = b""
    while state is not None and not state.eof:
        piece = state.decompress(b"", PIECE)
        if not piece:
            raise _Truncated
        yield piece


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    state: Any = None
    for chunk in chunks:
        while chunk:
            if state is None:
                # 128 MiB window: what `zstd --long` writes; more would let a layer take any amount of memory.
                state = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj(write_size=PIECE)
            piece = state.decompress(chunk)
            for start in range(0, len(piece), PIECE):
                yield piece[start : start + PIECE]
            chunk = b""
            if state.eof:
                chunk, state = state.unused_data, None
    if state is not None:
        raise _Truncated
