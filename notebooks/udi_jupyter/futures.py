"""Futures that show themselves: as a line each, many as a table."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, overload

_COLORS = {"done": "#2e7d32", "failed": "#c62828", "running": "#1565c0", "waiting": "#757575"}
_WIDTH = 80


def state(future: Future[Any]) -> str:
    """``waiting``, ``running``, ``done`` or ``failed``."""
    if future.done():
        return "failed" if future.cancelled() or future.exception() is not None else "done"
    # Parsl's futures keep their state elsewhere.
    record = getattr(future, "task_record", None)
    name = str(getattr(record.get("status"), "name", "")) if isinstance(record, dict) else ""
    return "running" if future.running() or name in ("launched", "running") else "waiting"


def outcome(future: Future[Any]) -> str:
    """The beginning of a result, or the reason that there is none; "" while there is neither."""
    if not future.done():
        return ""
    try:
        error = future.exception()
    except CancelledError:
        return "cancelled"
    if error is not None:
        return _short(f"{type(error).__name__}: {error}")
    result = future.result()
    return _short(result if isinstance(result, str) else repr(result))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def line(future: Future[Any]) -> str:
    """One future as HTML."""
    name, record = "task", getattr(future, "task_record", None)
    if isinstance(record, dict):
        name = f"{record.get('func_name', 'task')} {record.get('id', '')}"
    return f"<code>{html.escape(name)}</code> {_badge(state(future))} <code>{html.escape(outcome(future))}</code>"


def _badge(text: str) -> str:
    return f'<span style="color:{_COLORS[text]}">● {text}</span>'


def show_themselves(shell: Any) -> None:
    """Let every future (Parsl's are) be shown by its state in this IPython."""
    shell.display_formatter.formatters["text/html"].for_type(Future, line)


class Tasks(Sequence[Future[Any]]):
    """The tasks of one cell, in order; shown as a table of what each of them is doing."""

    def __init__(self, futures: Sequence[Future[Any]], labels: Sequence[str]) -> None:
        self._futures = tuple(futures)
        self.labels = tuple(labels)

    @overload
    def __getitem__(self, index: int) -> Future[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Future[Any]]: ...

    def __getitem__(self, index: int | slice) -> Future[Any] | Sequence[Future[Any]]:
        return self._futures[index]

    def __len__(self) -> int:
        return len(self._futures)

    def __iter__(self) -> Iterator[Future[Any]]:
        return iter(self._futures)

    @property
    def done(self) -> int:
        """How many have ended."""
        return sum(future.done() for future in self._futures)

    def results(self) -> list[Any]:
        """All results, in order; waits for them, and raises the first error."""
        return [future.result() for future in self._futures]

    def __repr__(self) -> str:
        rows = zip(self.labels, self._futures, strict=True)
        return "\n".join(f"{label}  {state(future)}  {outcome(future)}".rstrip() for label, future in rows)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{html.escape(label)}</code></td><td>{_badge(state(future))}</td>"
            f"<td style='text-align:left'><code>{html.escape(outcome(future))}</code></td></tr>"
            for label, future in zip(self.labels, self._futures, strict=True)
        )
        return f"<table><tr><th>task</th><th>state</th><th>result</th></tr>{rows}</table>"
