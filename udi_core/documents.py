"""Reading JSON without the json package, whose import of re costs a warm start 5 ms.

The parser is json's own: the part of it that is written in C, which needs no more than the settings below.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from typing import Any


class _Settings:
    strict = True
    object_hook = object_pairs_hook = None
    parse_float = parse_constant = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012 -- the scanner's own, and cleared by it


def parse_json(data: bytes) -> Any:
    """What :func:`json.loads` returns, and raises, for UTF-8."""
    try:
        from _json import make_scanner

        text = data.decode().strip()
        value, end = make_scanner(_Settings)(text, 0)  # type: ignore[arg-type]
        if end == len(text):
            return value
    except (ImportError, StopIteration):
        pass
    import json

    return json.loads(data)
