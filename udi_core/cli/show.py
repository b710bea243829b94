"""What people see of long work: bars on a terminal, plain lines elsewhere, nothing where nothing is long.

rich costs 60 ms to import, so it is imported when the first event comes, not when a command starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from udi_core.cli import printable
from udi_core.progress import Progress, ProgressSink, ignore

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from typing import Any

    from rich.progress import TaskID

_VERBS = {
    "resolve": "Resolving",
    "wait": "Waiting for",
    "download": "Downloading",
    "flatten": "Flattening",
    "publish": "Publishing",
    "mount": "Mounting",
    "copy": "Copying",
}
_LINE_SECONDS = 5.0


@contextlib.contextmanager
def lazy_progress(*, quiet: bool = False) -> Iterator[ProgressSink]:
    """A sink that draws on standard error: bars if it is a terminal, else a line every few seconds."""
    if quiet:
        yield ignore
        return
    drawing: Callable[[Progress], None] | None = None
    with contextlib.ExitStack() as stack:

        def show(event: Progress) -> None:
            nonlocal drawing
            if drawing is None:
                drawing = stack.enter_context(_bars()) if sys.stderr.isatty() else _Lines()
            drawing(event)

        yield show


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[tuple[str, str], TaskID] = {}
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def show(event: Progress) -> None:
            if event.unit != "B" and event.phase != "wait":
                return  # over in an instant: a bar would only flicker
            key = event.phase, event.item
            text = f"{_VERBS[event.phase]} {event.item} {event.note}".rstrip()
            if key not in tasks:
                tasks[key] = bars.add_task(text, total=event.total)
            bars.update(tasks[key], completed=event.done, total=event.total, description=text)

        yield show


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()
        self._ended: set[tuple[str, str]] = set()

    def __call__(self, event: Progress) -> None:
        key, now = (event.phase, event.item), time.monotonic()
        ended = event.total is not None and event.done >= event.total
        if key in self._ended or (not ended and now - self._last < _LINE_SECONDS):
            return
        self._last = now
        if ended:
            self._ended.add(key)
        with contextlib.suppress(OSError):  # a full disk behind 2> is no reason to fail
            # One write: print() makes two, and another thread's line would come between.
            sys.stderr.write(f"udi: {progress_text(event)}\n")
            sys.stderr.flush()


def progress_text(event: Progress) -> str:
    """One line: ``Downloading 4f53cda18c2b 42 % of 318 MB``."""
    amount = f"{event.done * 100 // event.total} %" if event.total else ""
    if event.unit == "B" and event.total:
        amount += f" of {size(event.total)}"
    return " ".join(word for word in (_VERBS[event.phase], event.item, event.note, amount) if word)


def size(count: int) -> str:
    """``318 MB``: decimal units, as registries and Docker show them."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the last one is used behind the loop
        if value < 1000:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> None:
    """Print aligned columns, the first ``numbers`` of them to the right; the last one is not cut and not padded."""
    shown = [list(map(printable, row)) for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    sides = [str.rjust] * numbers + [str.ljust] * (len(widths) - numbers)
    for row in shown:
        print("  ".join(side(text, width) for side, text, width in zip(sides, row, widths, strict=True)).rstrip())


def json_document(document: Any) -> None:
    """Print one JSON document."""
    import json

    print(json.dumps(document, indent=1))


def colored(text: str, code: str) -> str:
    """Text in a colour, on a terminal that wants it (https://no-color.org)."""
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
