"""Reading JSON without the json package, whose import of re costs a warm start 5 ms; and YAML without PyYAML.

The JSON parser is json's own: the part of it that is written in C, which needs no more than the settings below.  A
YAML file is parsed once on a node; what it says is kept as JSON, since importing PyYAML costs a warm start 17 ms.
"""

from __future__ import annotations

import os
import zlib

from udi_core.node_files import trusted

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: How the names of kept files begin.
KEPT = "parsed-"


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
    except (AttributeError, ImportError, StopIteration, SystemError, TypeError):
        pass  # malformed (the scanner takes its exception from json, which is not loaded); or it wants more settings
    import json

    return json.loads(data)


def parse_once(path: str, directory: str, parse: Callable[[bytes], Any]) -> Any:
    """``parse(content of a file)``, kept in ``directory`` until the file changes.

    Nothing is kept where the directory does not exist, or others could write to it; nor what JSON cannot hold.

    Raises:
        OSError: the file cannot be read.  Also what ``parse`` raises; then nothing is kept.
    """
    status = os.stat(path)
    stamp = [path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    place = f"{directory}/{KEPT}{zlib.crc32(os.fsencode(path)):08x}.json"
    try:
        keeps = trusted(directory)
    except OSError:
        keeps = False
    if keeps:
        try:
            with open(place, "rb") as file:
                seen, value = parse_json(file.read())
            if seen == stamp:
                return value
        except (OSError, ValueError, TypeError):
            pass
    with open(path, "rb") as file:
        value = parse(file.read())
    if keeps:
        _keep(place, [stamp, value])
    return value


def _keep(place: str, document: list[Any]) -> None:
    import json

    temporary = f"{place}.{os.getpid()}"
    try:
        text = json.dumps(document)
        if json.loads(text) != document:
            return  # JSON made another value of it: a number as a key became a text
        # Closed to others: root's node directory is not, and a configuration may hold what is not for everybody.
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
        os.rename(temporary, place)
    except (OSError, TypeError, ValueError):
        pass  # a date, a full disk: it is parsed again next time
