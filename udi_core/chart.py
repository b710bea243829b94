"""The picture of a report: bars of where the time went, as SVG that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from udi_core.report import PHASES, Group, Report

# Told apart by people who do not see all colours (Okabe and Ito, https://jfly.uni-koeln.de/color/).
_COLOURS = {"pull": "#0072b2", "mount": "#cc79a7", "setup": "#e69f00", "task": "#009e73"}
_WORDS = {"pull": "pulling", "mount": "mounting", "setup": "starting", "task": "in the task"}
_WIDTH, _LEFT, _RIGHT, _ROW, _BAR = 900, 250, 205, 22, 14
#: Bars of one panel; what is beyond is told in one line.
_MOST = 40


def draw(report: Report) -> str:
    """An SVG document with a bar for each image and one for each node."""
    total = report.total
    parts: list[str] = []
    y = _text(parts, 16, 28, "Where the time went", size=17, weight="bold")
    nodes, images, users = (len(each) for each in (total.nodes, total.images, total.users))
    counts = f"{count(total.tasks, 'task')} on {count(nodes, 'node')}, {count(images, 'image')}, {count(users, 'user')}"
    counts += f"; {count(total.mounts, 'mount')}"
    counts += f"; {total.failed} failed" if total.failed else ""
    y = _text(parts, 16, y + 20, counts, size=12)
    x = 16
    for phase in PHASES:
        parts.append(f'<rect x="{x}" y="{y + 12}" width="12" height="12" fill="{_COLOURS[phase]}"/>')
        label = f"{_WORDS[phase]} {seconds(total.seconds[phase])}"
        _text(parts, x + 17, y + 22, label, size=12)
        x += 40 + int(6.3 * len(label))
    y += 44
    y = _panel(parts, y, "Images", report.images)
    y = _panel(parts, y + 12, "Nodes", report.nodes)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 10}" font-family="sans-serif"'
        f' role="img" aria-label="{escape(counts)}">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{y + 10}" fill="white"/>', *parts, "</svg>\n"])


def count(number: int, what: str) -> str:
    """``1 node``, ``16 nodes``."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def seconds(value: float) -> str:
    """``3.1 ms``, ``42 s``, ``2.5 h``: a length of time with two or three digits."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if value >= size * (1 if unit == "s" else 2):
            return f"{value / size:.3g} {unit}"
    return f"{value * 1000:.3g} ms" if value else "0"


def _panel(parts: list[str], y: int, title: str, groups: Sequence[Group]) -> int:
    y = _text(parts, 16, y + 14, title, size=14, weight="bold") + 8
    longest = max((sum(group.seconds.values()) for group in groups), default=0.0)
    room = _WIDTH - _LEFT - _RIGHT
    for group in groups[:_MOST]:
        name = group.name if len(group.name) <= 34 else "…" + group.name[-33:]
        _text(parts, _LEFT - 8, y + 11, name, size=12, anchor="end", title=group.name)
        x = float(_LEFT)
        for phase in PHASES:
            width = room * group.seconds[phase] / longest if longest else 0.0
            if width:
                label = escape(f"{group.name}: {_WORDS[phase]} {seconds(group.seconds[phase])}")
                box = f'x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_BAR}"'
                parts.append(f'<rect {box} fill="{_COLOURS[phase]}"><title>{label}</title></rect>')
            x += width
        spent = f"{seconds(sum(group.seconds.values()))}, {count(group.tasks, 'task')}"
        if group.overhead and group.seconds["task"]:
            spent += f"; UDI's {seconds(group.overhead)}"
        _text(parts, x + 6, y + 11, spent, size=11)
        y += _ROW
    if len(groups) > _MOST:
        y = _text(parts, _LEFT, y + 11, f"and {len(groups) - _MOST} more, which took less", size=12) + 8
    return y


def _text(
    parts: list[str],
    x: float,
    y: int,
    text: str,
    *,
    size: int,
    weight: str = "normal",
    anchor: str = "start",
    title: str = "",
) -> int:
    inner = escape(text) + (f"<title>{escape(title)}</title>" if title else "")
    parts.append(
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}">{inner}</text>'
    )
    return y
