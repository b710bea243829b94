"""What a line of the run record costs: ``python -m benchmarks.record``; the target is 0.1 ms."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time

from benchmarks.measure import quiet_machine, verdict
from udi_core import record


def main() -> int:
    """Measure; exit code 0 if the target is met."""
    with tempfile.TemporaryDirectory(prefix="udi-record-") as directory:
        file = os.path.join(directory, record.NAME)
        head = record.head("run", "sha256:" + "a" * 64, "docker:ghcr.io/lab/reco:2.1", "kernel", 0, os.environ, "fit")
        taken = []
        for _ in range(2000):
            began = time.perf_counter()
            record.write(file, head, start=began, setup=0.01)
            taken.append((time.perf_counter() - began) * 1e6)
        size = os.path.getsize(file) // len(taken)
    print(quiet_machine())
    print(f"99 of 100 lines within {statistics.quantiles(taken, n=100)[98]:.1f} µs")
    return 0 if verdict(f"a line of {size} bytes, median", statistics.median(taken), 100, " µs") else 1


if __name__ == "__main__":
    sys.exit(main())
