"""``udi config show``: each value and where it came from."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from udi_core.cli.show import json_document, table
from udi_core.config import load_config

_SIZES = ("block_size", "memory", "max_size")


def config(arguments: argparse.Namespace) -> int:
    """Run the verb; ``show`` is the only one."""
    found = load_config()
    values: dict[str, Any] = {key: value for key, value in asdict(found).items() if key not in ("origins", "from_site")}
    if arguments.json:
        json_document({key: {"value": value, "origin": found.origins.get(key, "")} for key, value in values.items()})
    else:
        rows = [
            [key, found.origins.get(key, ""), _size(value) if key in _SIZES else _text(value)]
            for key, value in values.items()
        ]
        table(["SETTING", "FROM", "VALUE"], rows)
    return 0


def _size(count: int) -> str:
    """As a configuration file may say it: ``48M``."""
    for unit, bits in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if count and not count % (1 << bits):
            return f"{count >> bits}{unit}"
    return str(count)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(each)}" for key, each in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value)) or "-"
    return str(value) if value != "" else "-"
