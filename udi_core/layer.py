"""One layer: its bytes decompressed and checked, and the headers of its tar entries.

Sources: OCI image-spec layer.md; POSIX pax(1) "ustar Interchange Format" and "pax Extended Header"; the GNU tar
manual, "Basic Tar Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from udi_core import digest as digests
from udi_core.errors import CorruptImage, HostileImage, RegistryError, UnsupportedImage
from udi_core.manifest import LAYER_TYPES, Descriptor

#: Decompressed bytes in one piece, and how many pieces wait between two threads.
PIECE = 1 << 20
_DEPTH = 4
_PATIENCE = 2.0  # seconds to wait for a thread that is to end


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


def read_layer(layer: LayerInput, ratio: int, consumed: Callable[[int], None] = lambda count: None) -> PieceStream:
    """Begin to read a layer: fetching, decompressing and hashing run in two threads of their own.

    A layer may become ``ratio`` times as large as its blob, and one GiB more.  ``consumed`` is called with the
    compressed size of each chunk.
    """
    kind = LAYER_TYPES.get(layer.descriptor.media_type)
    if kind is None:
        raise UnsupportedImage(
            f"UDI cannot read layers of type {layer.descriptor.media_type!r}", layer.descriptor.digest
        )
    fetched = PieceStream(_counted(layer.open(), consumed))
    return PieceStream(_verified(_decompressed(fetched, kind, layer), layer, ratio), fetched)


class PieceStream:
    """An iterator that is run ahead by a thread; an error of the thread is raised where the piece was due.

    ``close`` may be called at any time and more than once.  It ends the thread, unless that waits for a network that
    does not answer: such a thread ends when its source is closed.
    """

    def __init__(self, pieces: Iterator[bytes], *upstream: PieceStream) -> None:
        self._pieces, self._upstream = pieces, upstream
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="udi-layer", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        error: BaseException | None = None
        try:
            with contextlib.closing(self._pieces) if isinstance(self._pieces, Generator) else contextlib.nullcontext():
                for piece in self._pieces:
                    with self._changed:
                        while len(self._waiting) >= _DEPTH and not self._closed:
                            self._changed.wait()
                        if self._closed:
                            break
                        self._waiting.append(piece)
                        self._changed.notify_all()
        except BaseException as caught:  # raised in the thread that reads
            error = caught
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                while not (self._waiting or self._ended or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                if not self._waiting:
                    if self._error is not None:
                        raise self._error
                    return
                piece = self._waiting.popleft()
                self._changed.notify_all()
            yield piece

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for each in self._upstream:
            each.close()
        self._thread.join(_PATIENCE)


def _counted(chunks: Iterator[bytes], consumed: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        consumed(len(chunk))
        yield chunk


def _verified(pieces: Iterator[bytes], layer: LayerInput, ratio: int) -> Iterator[bytes]:
    state = hashlib.new(layer.diff_id.partition(":")[0])
    left = layer.descriptor.size * ratio + (1 << 30)
    for piece in pieces:
        state.update(piece)
        left -= len(piece)
        if left < 0:
            raise HostileImage(
                f"Layer {layer.descriptor.digest} is a bomb",
                f"It has {layer.descriptor.size} bytes, and becomes more than {ratio} times as large.",
                "If you trust it, raise max_ratio in the configuration.",
            )
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
        _exhaust(chunks)
        raise CorruptImage(
            f"Layer {layer.descriptor.digest} ends too early", f"The {kind} stream is cut off.", "Pull it again."
        ) from error
    except (CorruptImage, OSError):
        raise
    except Exception as error:
        if type(error).__module__.startswith(("isal", "igzip", "zlib", "zstd", "zstandard")):
            _exhaust(chunks)
            raise CorruptImage(
                f"Layer {layer.descriptor.digest} cannot be decompressed",
                f"{kind}: {error}",
                "Pull it again; if it stays so, the image must be pushed anew.",
            ) from error
        raise


def _exhaust(chunks: PieceStream) -> None:
    """Read the rest of a blob that cannot be decompressed, for its digest tells at whose door the damage is laid.

    Raises:
        CorruptImage: the blob is not what its digest promises; otherwise the image itself is broken.
    """
    with contextlib.suppress(RegistryError):
        for _ in chunks:
            pass


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

    # 128 MiB window: what `zstd --long` writes; more would let a layer take any amount of memory.
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    # It reads frame after frame and gives a bounded piece at a time: a few bytes may stand for gigabytes.
    # It asks of its source only to be read from.
    with decompressor.stream_reader(_Readable(chunks), read_across_frames=True) as reader:  # type: ignore[arg-type]
        while piece := reader.read(PIECE):
            yield piece


class _Readable:
    """Chunks as a file: what zstandard reads from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def read(self, count: int) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = memoryview(chunk)
        taken, self._rest = self._rest[:count], self._rest[count:]
        return bytes(taken)
