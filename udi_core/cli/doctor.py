"""``udi doctor``: what is missing on this machine, and how to get it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from udi_core.cli.show import colored, json_document
from udi_core.config import load_config
from udi_core.doctor import examine

_MARKS = {"ok": ("ok", "32"), "note": ("note", "33"), "missing": ("missing", "1;31")}


def doctor(arguments: argparse.Namespace) -> int:
    """Print all findings; exit code 1 if something must be mended."""
    findings = examine(load_config())
    bad = any(each.level == "missing" for each in findings)
    if arguments.json:
        json_document({"ok": not bad, "findings": [asdict(each) for each in findings]})
        return int(bad)
    width = max(len(each.what) for each in findings)
    for each in findings:
        mark, code = _MARKS[each.level]
        print(f"{colored(f'{mark:8}', code)} {each.what:{width}}  {each.found}")
        if each.hint:
            print(f"{'':9}{'':{width}}  -> {each.hint}")
    return int(bad)
