"""``udi`` and ``python -m udi_core``."""

from __future__ import annotations

import sys


def main() -> int:
    """The console script; returns the exit code."""
    from udi_core.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
