"""Frames between an agent and its host, however a socket cuts them; and the agent's file itself."""

from __future__ import annotations

import os

import pytest

from udi_core.agent import in_image

FRAMES = (
    [b""],
    [],
    [b"request", b"", b"arguments"],
    [b"small", os.urandom(200_000), b"", b"after"],
    [bytes([number % 256]) for number in range(20_000)],
    [b"last"],
)


class Cut(in_image.Stream):
    """All frames, in pieces of at most ``size`` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.data = memoryview(b"".join(b"".join([in_image.frame(each), *each]) for each in FRAMES))
        self.size, self.reads = size, 0

    def read(self, view: memoryview) -> int:
        count = min(self.size, len(view), len(self.data))
        assert count, "it asks for nothing, or for more than was sent"
        view[:count], self.data = self.data[:count], self.data[count:]
        self.reads += 1
        return count


@pytest.mark.parametrize("size", [7, 4096, 65_536, 1 << 20])
def test_frames_come_whole_however_they_are_cut(size: int) -> None:
    stream = Cut(size)
    assert [stream.receive() for _ in FRAMES] == [[bytearray(part) for part in each] for each in FRAMES]
    assert not stream.data


def test_small_frames_cost_one_read_between_them_and_large_parts_one_each() -> None:
    stream = Cut(1 << 30)
    for _ in FRAMES[:3]:
        stream.receive()
    assert stream.reads == 1
    stream.receive()
    assert stream.reads <= 3


def test_parts_can_be_written_to_and_are_not_the_streams_own() -> None:
    stream = Cut(4096)
    received = [stream.receive() for _ in FRAMES]
    received[2][0][:] = b"another"
    assert received[2] == [b"another", b"", b"arguments"] and received[3][0] == b"small"


@pytest.mark.parametrize("parts", FRAMES, ids=range(len(FRAMES)))
def test_what_is_sent_is_a_frame(parts: list[bytes]) -> None:
    with open(os.memfd_create("frame"), "rb") as file:
        in_image.send(file.fileno(), parts)
        file.seek(0)
        assert file.read() == b"".join([in_image.frame(parts), *parts])
