"""``python -m benchmarks [NAME…]``: run benchmarks one after the other; all of them without a name.

A benchmark is a module of this package that ends with ``sys.exit(main())``: it prints its figures beside their
targets and ends with status 1 if it misses one.  Each runs in a process of its own, alone on the machine.
"""

from __future__ import annotations

import ast
import sys
import time
from pathlib import Path

from udi_core import spawn

_HERE = Path(__file__).parent


def benchmarks() -> dict[str, str]:
    """Name and first line of the docstring of every benchmark."""
    found = {}
    for path in sorted(_HERE.glob("*.py")):
        source = path.read_text()
        if path.stem != "__main__" and "sys.exit(main(" in source:
            found[path.stem] = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return found


def main(names: list[str]) -> int:
    known = benchmarks()
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}\nthere are:", file=sys.stderr)
        print(*(f"  {name:12} {what}" for name, what in known.items()), sep="\n", file=sys.stderr)
        return 2
    verdicts = {}
    for name in names or known:
        print(f"== {name}: {known[name]}", flush=True)
        started = time.monotonic()
        status = spawn([sys.executable, "-m", f"benchmarks.{name}"]).wait()
        verdicts[name] = f"{'reached' if status == 0 else f'status {status}'}, {time.monotonic() - started:.0f} s"
    print("== summary")
    for name, verdict in verdicts.items():
        print(f"  {name:12} {verdict}")
    return 0 if all(verdict.startswith("reached") for verdict in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
