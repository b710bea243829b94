"""How far long work is: widgets in a notebook, bars in a terminal, plain lines elsewhere.

When the work is over, widgets give way to a line of text each, so that a notebook that is stored or printed says
what happened.  ``UDI_PROGRESS=plain`` asks for lines.
"""

from __future__ import annotations

import contextlib
import html
import os
import time
from dataclasses import dataclass
from typing import Any

from udi_core import Progress, lazy_progress

_VERBS = {"download": "Downloading", "flatten": "Flattening", "mount": "Mounting", "wait": "Waiting for"}
_REDRAW_SECONDS = 0.1


@dataclass(slots=True)
class Row:
    """One kind of work: ``done`` of ``total``, in a unit that ``text`` tells."""

    text: str
    done: int = 0
    total: int = 0

    @property
    def ended(self) -> bool:
        return self.total > 0 and self.done >= self.total

    def __str__(self) -> str:
        if self.total > 1000:
            return f"{self.text}: {100 * self.done // self.total} %"
        return f"{self.text}: {self.done} of {self.total}"


class Board(contextlib.ExitStack):
    """A context manager; use it from one thread at a time."""

    def __init__(self, shell: Any = None) -> None:
        super().__init__()
        self._rows: dict[str, Row] = {}
        self._lines = None
        self._widgets = None
        if has_widgets(shell):
            self._widgets = _Widgets(self._rows)
            self.callback(self._widgets.close)
        else:
            self._lines = self.enter_context(lazy_progress())

    def show(self, event: Progress) -> None:
        """A sink for the core's events."""
        if self._lines is not None:
            self._lines(event)
        elif event.phase in _VERBS and (event.unit == "B" or event.phase == "wait"):
            text = f"{_VERBS[event.phase]} {event.item} {event.note}".rstrip()
            self._draw(f"{event.phase} {event.item}", text, event.done, event.total or 0)

    def count(self, text: str, done: int, total: int) -> None:
        """So many of these are done: nodes, tasks."""
        if self._widgets is not None:
            self._draw(text, text, done, total)
        elif self._rows.get(text) != Row(text, done, total):
            self._rows[text] = Row(text, done, total)
            print(f"udi: {self._rows[text]}", flush=True)

    def _draw(self, key: str, text: str, done: int, total: int) -> None:
        self._rows[key] = Row(text, done, total)
        if self._widgets is not None:
            self._widgets.draw(key)


def has_widgets(shell: Any) -> bool:
    """Whether this is a notebook that can show widgets."""
    if shell is None or not hasattr(shell, "kernel") or os.environ.get("UDI_PROGRESS") == "plain":
        return False
    with contextlib.suppress(ImportError):
        import ipywidgets  # noqa: F401

        return True
    return False


class Lines:
    """What is left when the work is over."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __repr__(self) -> str:
        return "\n".join(map(str, self._rows))

    def _repr_html_(self) -> str:
        return "<br>".join(html.escape(str(row)) for row in self._rows)


class _Widgets:
    def __init__(self, rows: dict[str, Row]) -> None:
        self._rows = rows
        self._bars: dict[str, Any] = {}
        self._drawn: dict[str, float] = {}
        self._box: Any = None
        self._handle: Any = None

    def draw(self, key: str) -> None:
        import ipywidgets
        from IPython.display import display

        row, now = self._rows[key], time.monotonic()
        if not row.ended and now - self._drawn.get(key, 0.0) < _REDRAW_SECONDS:
            return
        self._drawn[key] = now
        if self._box is None:
            self._box = ipywidgets.VBox([])
            self._handle = display(self._box, display_id=True)  # type: ignore[no-untyped-call]
        if key not in self._bars:
            bar = ipywidgets.FloatProgress(max=1.0, layout=ipywidgets.Layout(width="16em"))
            self._bars[key] = ipywidgets.HBox([bar, ipywidgets.Label("")])
            self._box.children = tuple(self._bars.values())
        bar, label = self._bars[key].children
        bar.value = row.done / row.total if row.total else 0.0
        bar.bar_style = "success" if row.ended else "info"
        label.value = str(row) if row.total else row.text

    def close(self) -> None:
        if self._box is not None:
            self._handle.update(Lines(list(self._rows.values())))
            self._box.close()
