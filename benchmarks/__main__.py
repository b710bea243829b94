"""``python -m benchmarks [NAME…]``: run benchmarks one after the other; all of them without a name.

A benchmark is a module of this package that ends with ``sys.exit(main())``: it prints its figures beside their
targets and ends with status 1 if it misses one, or 77 if it cannot run here.  Each runs in a process of its own,
alone on the machine.  At the end: one table of all figures, also as JSON in ``.cache/bench/results.json``.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import NOT_RUN, RESULTS
from udi_core import find_tool, run, spawn

_HERE = Path(__file__).parent
_RESULTS = _HERE.parent / ".cache" / "bench" / "results.json"


def benchmarks() -> dict[str, str]:
    """Name and first line of the docstring of every benchmark."""
    found = {}
    for path in sorted(_HERE.glob("*.py")):
        source = path.read_text()
        if path.stem != "__main__" and "sys.exit(main(" in source:
            found[path.stem] = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return found


def run_one(name: str) -> dict[str, Any]:
    """Run a benchmark; its status, seconds and figures."""
    with tempfile.NamedTemporaryFile(prefix="udi-bench-", suffix=".jsonl") as file:
        started = time.monotonic()
        load = os.getloadavg()[0]
        environment = {**os.environ, RESULTS: file.name}
        status = spawn([sys.executable, "-m", f"benchmarks.{name}"], cwd=str(_HERE.parent), env=environment).wait()
        seconds = time.monotonic() - started
        lines = [json.loads(line) for line in Path(file.name).read_text().splitlines()]
    why = next((each["not_run"] for each in lines if "not_run" in each), "")
    figures = [each for each in lines if "not_run" not in each]
    if status not in (0, NOT_RUN) and all(each["reached"] for each in figures):
        why = f"failed with status {status}"  # it missed nothing, so it broke off
    return {"name": name, "status": status, "seconds": round(seconds, 1), "load": load, "why": why, "figures": figures}


def table(results: Iterable[dict[str, Any]]) -> Table:
    """Every figure: its target, whether it is met, and the peer that was measured beside it."""
    drawn = Table(title="UDI benchmarks", title_justify="left", title_style="bold")
    for heading in ("benchmark", "what", "figure", "target", "met", "peer", "ratio"):
        drawn.add_column(heading, justify="right" if heading in ("figure", "target", "ratio") else "left")
    for result in results:
        name = result["name"]
        for each in result["figures"]:
            unit = f" {each['unit']}" if each["unit"] else ""
            peer, beside = each["peer"], each["beside"]
            ratio = f"{each['value'] / beside:.2f}" if beside else ""
            drawn.add_row(
                name,
                each["what"].strip(),
                f"{each['value']:.2f}{unit}",
                each["target"],
                "yes" if each["reached"] else "[bold red]NO[/]",
                f"{peer} {beside:.2f}{unit}" if beside else peer,
                ratio,
            )
            name = ""
        if result["why"]:
            failed = result["status"] != NOT_RUN
            drawn.add_row(name, result["why"], "", "", "[bold red]FAILED[/]" if failed else "not run", "", "")
        drawn.add_section()
    return drawn


def machine() -> dict[str, Any]:
    """What the figures were measured on, and of which commit."""
    commit = ""
    if find_tool("git"):
        commit = run(["git", "-C", str(_HERE), "describe", "--always", "--dirty"], check=False).stdout.decode().strip()
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit or "no repository",
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "user": "root" if os.getuid() == 0 else "ordinary user",
    }


def main(names: list[str]) -> int:
    known = benchmarks()
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}\nthere are:", file=sys.stderr)
        print(*(f"  {name:12} {what}" for name, what in known.items()), sep="\n", file=sys.stderr)
        return 2
    results = []
    for name in names or known:
        print(f"== {name}: {known[name]}", flush=True)
        results.append(run_one(name))
    document = {"machine": machine(), "benchmarks": results}
    _RESULTS.parent.mkdir(parents=True, exist_ok=True)
    _RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(flush=True)
    Console(width=None if sys.stdout.isatty() else 150).print(table(results))
    there = document["machine"]
    print(
        f"{there['commit']}, {there['cpus']} CPUs, Linux {there['kernel']}, Python {there['python']}, {there['user']}"
    )
    print(f"also in {_RESULTS}")
    return 0 if all(each["status"] in (0, NOT_RUN) for each in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
