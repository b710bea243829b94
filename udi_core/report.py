"""What run records say, taken together: where the time went, per image and per node.  Pure but for :func:`read`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from udi_core.errors import InvalidReference
from udi_core.reference import ImageReference

#: Kinds of time, in the order in which they pass: the names of :attr:`Group.seconds`.
PHASES = ("pull", "mount", "setup", "task")
_EVENTS = ("pull", "mount")


@dataclass(slots=True, kw_only=True)
class Group:
    """What tasks of one image, or on one node, have in common.

    Attributes:
        name: the image's reference, or the node.
        tasks: how many began; ``failed`` of them ended with another status than 0.
        mounts: how many times an image was mounted.
        seconds: by :data:`PHASES`, summed over tasks; ``task`` only of those whose end is known.
        setups: seconds of each task until it began.
        cpu: seconds of CPU, and ``rss`` the most bytes of memory, as far as they are known.
    """

    name: str
    tasks: int = 0
    failed: int = 0
    mounts: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    setups: list[float] = field(default_factory=list)
    cpu: float = 0.0
    rss: int = 0
    users: set[Any] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)

    def add(self, line: dict[str, Any]) -> None:
        """Count one line of a record."""
        self.users.add(line.get("uid"))
        self.images.add(line["image"])
        self.nodes.add(line["node"])
        seconds = float(line.get("seconds", 0))
        if line["by"] in _EVENTS:
            self.mounts += line["by"] == "mount"
            self.seconds[line["by"]] += seconds
            return
        self.tasks += 1
        self.failed += bool(line.get("exit", 0))
        self.seconds["task"] += seconds
        if "setup" in line:
            self.seconds["setup"] += float(line["setup"])
            self.setups.append(float(line["setup"]))
        self.cpu += float(line.get("cpu", 0))
        self.rss = max(self.rss, int(line.get("rss", 0)))

    @property
    def overhead(self) -> float:
        """Seconds that were spent for tasks and not in them."""
        return sum(self.seconds.values()) - self.seconds["task"]

    def document(self) -> dict[str, Any]:
        """As ``udi report --json`` shows it."""
        return {
            "name": self.name,
            "tasks": self.tasks,
            "failed": self.failed,
            "mounts": self.mounts,
            "seconds": {phase: round(value, 6) for phase, value in self.seconds.items()},
            "median_setup": round(median(self.setups), 6) if self.setups else None,
            "cpu": round(self.cpu, 3),
            "rss": self.rss,
            "images": len(self.images),
            "nodes": len(self.nodes),
            "users": len(self.users),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All records together.  Groups come with those that took most time first.

    Attributes:
        first, last: seconds since 1970 of the first and the last line; 0 without any.
        unreadable: lines that are not of a record, such as one that a full disk cut.
    """

    total: Group
    images: tuple[Group, ...]
    nodes: tuple[Group, ...]
    first: float
    last: float
    unreadable: int

    def document(self) -> dict[str, Any]:
        """As ``udi report --json`` shows it."""
        return {
            "lookups": self.total.tasks,
            "unique_images": len(self.total.images),
            "unique_users": len(self.total.users),
            "unique_nodes": len(self.total.nodes),
            "first": self.first,
            "last": self.last,
            "unreadable": self.unreadable,
            "total": self.total.document(),
            "by_image": [group.document() for group in self.images],
            "by_node": [group.document() for group in self.nodes],
        }


def read(paths: Sequence[str]) -> Iterator[str]:
    """The lines of files, and of the files ``*.jsonl*`` in directories; what is not there is left out."""
    for path in paths:
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if ".jsonl" in name and not name.startswith("."))
            yield from read([os.path.join(path, name) for name in names])
        elif os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                yield from file


def summarise(lines: Iterable[str]) -> Report:
    """Add up the lines of records."""
    total, images, nodes = Group(name="all"), dict[str, Group](), dict[str, Group]()
    starts: list[float] = []
    unreadable = 0
    for text in lines:
        line = _parse(text)
        if line is None:
            unreadable += 1
            continue
        starts.append(float(line["start"]))
        image = images.get(line["image"]) or images.setdefault(line["image"], Group(name=_image_name(line)))
        node = nodes.setdefault(line["node"], Group(name=line["node"]))
        for group in (total, image, node):
            group.add(line)
    return Report(
        total=total,
        images=_sorted(images),
        nodes=_sorted(nodes),
        first=min(starts, default=0.0),
        last=max(starts, default=0.0),
        unreadable=unreadable,
    )


def _image_name(line: dict[str, Any]) -> str:
    """The image's reference, as ``udi images`` shows it; its digest where there is none."""
    reference = str(line.get("reference") or line["image"])
    try:
        return ImageReference.parse(reference).short
    except InvalidReference:
        return reference


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        if not all(isinstance(line[name], str) for name in ("by", "image", "node")):
            return None
        for name in ("start", "seconds", "setup", "cpu", "rss", "exit"):
            float(line.get(name, 0))
        return line if "start" in line else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _sorted(groups: dict[str, Group]) -> tuple[Group, ...]:
    return tuple(sorted(groups.values(), key=lambda group: (-sum(group.seconds.values()), -group.tasks, group.name)))
