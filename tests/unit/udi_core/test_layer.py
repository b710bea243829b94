"""Layers as streams: compressions, what can be wrong with them, and that nothing is left running."""

from __future__ import annotations

import gzip
import os
import threading
import time
from collections.abc import Iterator

import pytest
import zstandard

from tests.support import oci
from udi_core.errors import CorruptImage, HostileImage, RegistryError, UnsupportedImage
from udi_core.layer import PIECE, LayerInput, read_layer
from udi_core.manifest import Descriptor

CONTENT = os.urandom(3_000_000) + bytes(5_000_000)


def layer(blob: bytes, compression: oci.Compression, content: bytes = CONTENT, size: int = 100_000) -> LayerInput:
    descriptor = Descriptor(media_type=oci.layer_type(compression), digest=oci.digest_of(blob), size=len(blob))
    chunks = [blob[start : start + size] for start in range(0, len(blob), size)]
    return LayerInput(descriptor=descriptor, diff_id=oci.digest_of(content), open=lambda: iter(chunks))


def read(given: LayerInput) -> bytes:
    stream = read_layer(given, 250)
    try:
        return b"".join(stream)
    finally:
        stream.close()


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "udi-layer"]


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


@pytest.mark.parametrize("size", [1000, 100_000, 1 << 24])
@pytest.mark.parametrize(
    ("blob", "compression"),
    [
        (CONTENT, ""),
        (gzip.compress(CONTENT, 1), "gzip"),
        (gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:2000]) + gzip.compress(CONTENT[2000:], 1), "gzip"),
        (gzip.compress(CONTENT, 1) + bytes(700), "gzip"),
        (zstd(CONTENT), "zstd"),
        (zstd(CONTENT[:1000]) + b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstd(CONTENT[1000:]), "zstd"),
    ],
    ids=["plain", "gzip", "gzip-members", "gzip-padded", "zstd", "zstd-frames"],
)
def test_compressions(blob: bytes, compression: oci.Compression, size: int) -> None:
    assert read(layer(blob, compression, size=size)) == CONTENT
    assert not threads()


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_chunks_may_be_tiny(compression: oci.Compression) -> None:
    content = CONTENT[:5000]
    assert read(layer(oci.compress(content, compression), compression, content, size=1)) == content


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_pieces_are_small_whatever_they_come_from(compression: oci.Compression) -> None:
    content = bytes(200 << 20)
    stream = read_layer(layer(oci.compress(content, compression), compression, content, 1 << 24), 1 << 20)
    assert max(len(piece) for piece in stream) <= PIECE
    stream.close()


@pytest.mark.parametrize(
    ("blob", "compression"),
    [
        (gzip.compress(CONTENT, 1)[:-1000], "gzip"),
        (gzip.compress(CONTENT, 1)[:-4], "gzip"),
        (gzip.compress(CONTENT, 1)[:5], "gzip"),
        (gzip.compress(CONTENT, 1) + b"trailing garbage", "gzip"),
        (gzip.compress(CONTENT, 1)[:-8] + bytes(8), "gzip"),
        (b"no gzip at all", "gzip"),
        (zstd(CONTENT)[:-10], "zstd"),
        (zstd(CONTENT) + b"trailing garbage", "zstd"),
        (zstd(CONTENT)[:1000] + bytes(1000) + zstd(CONTENT)[2000:], "zstd"),
        (b"no zstd at all", "zstd"),
        (CONTENT[:-1], ""),
        (CONTENT + b"x", ""),
    ],
)
def test_what_is_wrong_is_corrupt(blob: bytes, compression: oci.Compression) -> None:
    with pytest.raises(CorruptImage) as caught:
        read(layer(blob, compression))
    assert caught.value.exit_code == 65
    assert oci.digest_of(blob)[:12] in str(caught.value)
    assert not threads()


def test_a_window_that_would_take_too_much_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(CONTENT) + compressor.flush()
    with pytest.raises(CorruptImage, match="cannot be decompressed"):
        read(layer(blob, "zstd"))


def test_a_wrong_diff_id_is_told_with_both_digests() -> None:
    given = layer(gzip.compress(CONTENT, 1), "gzip", b"another")
    with pytest.raises(CorruptImage) as caught:
        read(given)
    assert given.diff_id in caught.value.details
    assert oci.digest_of(CONTENT) in caught.value.details


def test_a_bomb_is_refused() -> None:
    content = bytes((1 << 30) + (4 << 20))
    with pytest.raises(HostileImage, match="bomb"):
        read(
            LayerInput(
                descriptor=Descriptor(media_type=oci.layer_type(""), digest=oci.digest_of(b""), size=0),
                diff_id=oci.digest_of(b""),
                open=lambda: (content[start : start + PIECE] for start in range(0, len(content), PIECE)),
            )
        )


def test_unknown_compression_is_unsupported() -> None:
    given = LayerInput(
        descriptor=Descriptor(media_type="application/x-strange", digest=oci.digest_of(b""), size=0),
        diff_id="",
        open=lambda: iter(()),
    )
    with pytest.raises(UnsupportedImage, match="x-strange"):
        read_layer(given, 250)


def test_errors_of_the_source_come_through() -> None:
    def broken() -> Iterator[bytes]:
        yield gzip.compress(CONTENT, 1)[:100_000]
        raise RegistryError("cut")

    given = layer(b"", "gzip")
    with pytest.raises(RegistryError, match="cut"):
        read(LayerInput(descriptor=given.descriptor, diff_id=given.diff_id, open=broken))
    assert not threads()


def test_a_reader_that_leaves_early_leaves_nothing_behind() -> None:
    closed = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(PIECE)
        finally:
            closed.set()

    given = layer(b"", "")
    stream = read_layer(LayerInput(descriptor=given.descriptor, diff_id="sha256:", open=endless), 1 << 40)
    next(iter(stream))
    stream.close()
    stream.close()
    assert not threads()
    assert closed.is_set()


def test_a_source_that_does_not_answer_does_not_hold_up_the_end() -> None:
    answer = threading.Event()

    def silent() -> Iterator[bytes]:
        yield b"x"
        answer.wait(600)

    given = layer(b"", "")
    stream = read_layer(LayerInput(descriptor=given.descriptor, diff_id="sha256:", open=silent), 250)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 60
    answer.set()
    for thread in threads():
        thread.join(10)
    assert not threads()
