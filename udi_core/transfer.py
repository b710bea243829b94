"""Layers fetched ahead: parallel requests, bytes in order, and a bound on what waits in memory.

All layers of a pull are one row of chunks, in the order in which they will be read.  A chunk may be begun once the
chunks in front of it, as far as the reader has not taken them, leave room in the budget.  So the chunk that the
reader waits for is always among those that were begun, and nothing locks up, however small the budget is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from udi_core.digest import short
from udi_core.errors import RegistryError
from udi_core.manifest import Descriptor
from udi_core.progress import Progress, ProgressSink, ignore

#: Bytes of one read, which is also what the reader gets at a time.
PIECE = 256 << 10
#: Bytes of one request.  Smaller ones pay for round trips, larger ones leave too few within the budget.
CHUNK = 4 << 20
#: Seconds in which not one piece comes; longer than the patience with a registry that asks to wait.
STALLED = 1800.0
_TOLD = 1 << 20  # bytes between two progress events


class Reader(Protocol):
    """Bytes of a blob, from an offset on.

    Attributes:
        heeded: whether the registry sends only the range that it was asked for; known after the first read.
    """

    heeded: bool

    def read(self, count: int) -> bytes:
        """One to ``count`` bytes; b"" at the end of the blob."""

    def stop(self) -> None:
        """End a read that waits in another thread, and all reads to come."""

    def close(self) -> None:
        """Release what it holds; only for the thread that reads."""


#: ``open(layer, start, stop)`` begins to read bytes ``start`` to ``stop`` (None: to the end) of a blob.
Open = Callable[[Descriptor, int, int | None], Reader]


@dataclass(slots=True, eq=False)
class _Chunk:
    layer: _Layer
    start: int
    stop: int
    pieces: deque[bytes] = field(default_factory=deque)
    done: bool = False


@dataclass(slots=True, eq=False)
class _Layer:
    descriptor: Descriptor
    chunks: list[_Chunk] = field(default_factory=list)
    received: int = 0
    told: int = 0
    heeded: bool | None = None


class Transfer:
    """Fetches blobs by threads of its own, and hands them out in order to one reader.

    Args:
        layers: in the order in which they will be read.
        open: begins to read a part of a blob; an error of it is final.
        budget: bytes that may wait in memory for the reader.
        connections: how many parts are fetched at the same time.
    """

    def __init__(
        self,
        layers: Sequence[Descriptor],
        open: Open,
        *,
        budget: int,
        connections: int,
        progress: ProgressSink = ignore,
    ) -> None:
        self._open, self._progress = open, progress
        self._budget, self._connections = budget, connections
        size = max(PIECE, min(CHUNK, budget // (2 * connections)))
        self._layers = [_plan(each, size) for each in layers]
        self._next = 0
        self._row = deque(chunk for layer in self._layers for chunk in layer.chunks)
        self._held = 0  # bytes of chunks that were begun, less what the reader has taken
        self._lock, self._telling = threading.Lock(), threading.Lock()
        self._arrived, self._room = threading.Condition(self._lock), threading.Condition(self._lock)
        self._error: BaseException | None = None
        self._closed = False
        self._readers: set[Reader] = set()
        self._threads: list[threading.Thread] = []

    def serves(self, layer: Descriptor) -> bool:
        """Whether this layer is the next one to be read."""
        return not self._closed and self._next < len(self._layers) and self._layers[self._next].descriptor == layer

    def pieces(self) -> Iterator[bytes]:
        """The next layer's bytes in order.  Leaving it before its end closes the transfer.

        Raises:
            RegistryError: bytes cannot be had any more; of any layer, for the image is lost then.
        """
        layer = self._layers[self._next]
        self._next += 1
        self._start()
        try:
            for chunk in layer.chunks:
                yield from self._taken(chunk)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all reads and threads.  Idempotent."""
        with self._lock:
            self._closed = True
            readers = list(self._readers)
            self._arrived.notify_all()
            self._room.notify_all()
        for reader in readers:
            reader.stop()
        for thread in self._threads:
            thread.join(5)  # who waits for a host that does not answer ends later, or with the program

    def _start(self) -> None:
        if not self._threads:
            count = min(self._connections, len(self._row))
            self._threads = [threading.Thread(target=self._work, name="udi-fetch", daemon=True) for _ in range(count)]
            for thread in self._threads:
                thread.start()

    def _taken(self, chunk: _Chunk) -> Iterator[bytes]:
        done = False
        while not done:
            with self._lock:
                while not (chunk.pieces or chunk.done or self._error or self._closed):
                    # Bytes that drip keep a connection alive for ever, and all nodes wait for this pull.
                    if not self._arrived.wait(STALLED):
                        raise RegistryError(
                            "The registry sends next to nothing",
                            f"Not {PIECE} bytes in {STALLED:.0f} seconds.",
                            "Try again later; if it stays so, use a mirror.",
                        )
                if not chunk.pieces and not chunk.done:
                    raise self._error or RegistryError("The transfer was given up", "Another layer ended it.")
                pieces, done = list(chunk.pieces), chunk.done
                chunk.pieces.clear()
            while pieces:
                size = len(pieces[0])
                yield pieces.pop(0)
                with self._lock:
                    self._held -= size
                    if self._row and self._fits(self._row[0]):
                        self._room.notify_all()

    def _work(self) -> None:
        try:
            while chunk := self._admit():
                self._fetch(chunk)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
                self._arrived.notify_all()
                self._room.notify_all()

    def _admit(self, layer: _Layer | None = None) -> _Chunk | None:
        """The next chunk of the row, when there is room for it; None if there is nothing left to do.

        Args:
            layer: take only this one's chunks: the registry sends it in one go, and we are the one who reads it.
        """
        with self._lock:
            while self._row and not self._closed and self._error is None:
                chunk = self._row[0]
                mine = chunk.layer is layer if layer else chunk.start == 0 or chunk.layer.heeded
                if mine and self._fits(chunk):
                    self._held += chunk.stop - chunk.start
                    self._room.notify_all()
                    return self._row.popleft()
                self._room.wait()
            return None

    def _fits(self, chunk: _Chunk) -> bool:
        return self._held == 0 or self._held + chunk.stop - chunk.start <= self._budget

    def _fetch(self, chunk: _Chunk) -> None:
        """Fill a chunk; and if the registry sends the whole layer, those behind it."""
        layer = chunk.layer
        last = layer.chunks[-1]
        reader = self._open(layer.descriptor, chunk.start, None if chunk is last and chunk.start == 0 else chunk.stop)
        with self._lock:
            self._readers.add(reader)
        try:
            position = chunk.start
            while not self._closed:
                while position < chunk.stop:
                    piece = reader.read(min(PIECE, chunk.stop - position))
                    position += len(piece)
                    self._put(chunk, piece)
                    if layer.heeded is None:
                        self._heeded(layer, reader.heeded)
                self._finish(chunk)
                following = None if chunk is last or layer.heeded else self._admit(layer)
                if following is None:
                    return
                chunk = following
        finally:
            with self._lock:
                self._readers.discard(reader)
            reader.close()

    def _heeded(self, layer: _Layer, heeded: bool) -> None:
        with self._lock:
            layer.heeded = heeded
            self._room.notify_all()

    def _put(self, chunk: _Chunk, piece: bytes) -> None:
        layer, total = chunk.layer, chunk.layer.descriptor.size
        with self._lock:
            chunk.pieces.append(piece)
            layer.received += len(piece)
            self._arrived.notify()
        if layer.received - layer.told >= _TOLD or layer.received == total:
            with self._telling:
                layer.told = layer.received
                self._progress(Progress("download", short(layer.descriptor.digest), layer.told, total))

    def _finish(self, chunk: _Chunk) -> None:
        with self._lock:
            chunk.done = True
            self._arrived.notify()


def _plan(descriptor: Descriptor, size: int) -> _Layer:
    layer = _Layer(descriptor)
    layer.chunks = [
        _Chunk(layer, start, min(start + size, descriptor.size)) for start in range(0, descriptor.size or 1, size)
    ]
    return layer
