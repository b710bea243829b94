"""Layers fetched ahead, from a registry that does not deserve it."""

from __future__ import annotations

import threading

import pytest

from udi_core import transfer
from udi_core.errors import RegistryError
from udi_core.manifest import Descriptor


class Dripping:
    """A reader whose bytes come one by one, and never are a piece."""

    heeded = True

    def __init__(self, *_: object) -> None:
        self.stopped = threading.Event()

    def read(self, count: int) -> bytes:
        self.stopped.wait(120)
        return b"x" * count

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        pass


def test_bytes_that_drip_hold_nobody_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STALLED", 0.1)
    layer = Descriptor(media_type="", digest="sha256:" + "a" * 64, size=1000)
    fetched = transfer.Transfer([layer], Dripping, budget=1 << 20, connections=1)
    with pytest.raises(RegistryError, match="next to nothing"):
        next(fetched.pieces())
    for thread in fetched._threads:
        thread.join(60)
        assert not thread.is_alive()
