"""Cost against the number of entries: flatten layers of 10k, 100k and 1M small files; entries per second of each.

``python -m benchmarks.entries [COUNT …]``.  Each is run three times, and the fastest counts: what else runs on the
machine can only slow a run down.  Exit code 1 if the largest runs at less than 0.8 of the smallest's rate.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import against, need, quiet_machine
from tests.support import oci
from udi_core import tarheader
from udi_core.flatten import flatten
from udi_core.layer import LayerInput
from udi_core.manifest import Descriptor
from udi_core.squashfs import SquashfsOptions, SquashfsWriter

COUNTS = (10_000, 100_000, 1_000_000)
RUNS = 3


def write_layer(path: Path, count: int) -> str:
    """An uncompressed layer of ``count`` files of some 100 bytes, 250 in a directory; returns its digest."""
    state = hashlib.sha256()
    with open(path, "wb") as file:
        for first in range(0, count, 250):
            entries = [oci.directory(f"d{first // 25000}/s{first // 250}")]
            if first % 25000 == 0:
                entries.insert(0, oci.directory(f"d{first // 25000}"))
            entries += [
                oci.file(f"d{first // 25000}/s{first // 250}/f{n}", f"{n}:" * 15) for n in range(first, first + 250)
            ]
            block = oci.tar(entries)
            # The end marker of each piece must not end the layer.
            end = block.rstrip(b"\0")
            block = block[: len(end) + -len(end) % tarheader.BLOCK]
            state.update(block)
            file.write(block)
        file.write(bytes(1024))
        state.update(bytes(1024))
    return f"sha256:{state.hexdigest()}"


def rate(count: int) -> tuple[float, float]:
    """Entries flattened per second, and microseconds of CPU for each, of all processes together."""
    best = 0.0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        path, target = Path(scratch, "layer.tar"), Path(scratch, "image.squashfs")
        digest = write_layer(path, count)
        descriptor = Descriptor(media_type=oci.layer_type(""), digest=digest, size=path.stat().st_size)

        def read() -> Iterator[bytes]:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk

        for _ in range(RUNS):
            begin, before = time.monotonic(), _cpu()
            with SquashfsWriter(str(target), SquashfsOptions()) as writer:
                start: Callable[[], Callable[[bytes | memoryview], object]] = lambda: writer.write  # noqa: E731
                report = flatten([LayerInput(descriptor=descriptor, diff_id=digest, open=read)], start)
                writer.finish()
            found = report.entries / (time.monotonic() - begin), (_cpu() - before) / report.entries * 1e6
            best = max(best, found)
    return best


def _cpu() -> float:
    return sum(os.times()[:4])


def main(counts: list[int]) -> int:
    need("tar2sqfs")
    print(f"flatten, entries per second; {quiet_machine()}")
    rates = []
    for count in counts:
        speed, cost = rate(count)
        rates.append(speed)
        print(f"  {count:9,} files: {speed:9,.0f} entries/s, {cost:5.1f} us of CPU each", flush=True)
    what = f"entries/s at {counts[-1]:,}"
    return 0 if against(what, rates[-1], rates[0], 0.8, "/s", peer=f"at {counts[0]:,}", at_least=True) else 1


if __name__ == "__main__":
    sys.exit(main([int(each) for each in sys.argv[1:]] or list(COUNTS)))
