"""``udi report``: where the time went, from the run records."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from itertools import chain
from pwd import getpwuid

from udi_core import task_files
from udi_core.chart import count, draw, seconds
from udi_core.cli.show import json_document, size, table
from udi_core.config import load_config
from udi_core.errors import OutputLost, UsageError
from udi_core.report import Group, Report, read, summarise

_COLUMNS: tuple[tuple[str, Callable[[Group], str]], ...] = (
    ("TASKS", lambda group: str(group.tasks)),
    ("FAILED", lambda group: str(group.failed)),
    ("MOUNTS", lambda group: str(group.mounts)),
    ("PULL", lambda group: seconds(group.seconds["pull"])),
    ("MOUNT", lambda group: seconds(group.seconds["mount"])),
    ("START", lambda group: seconds(group.seconds["setup"])),
    ("EACH", lambda group: seconds(group.document()["median_setup"] or 0.0)),
    ("IN TASKS", lambda group: seconds(group.seconds["task"])),
    ("CPU", lambda group: seconds(group.cpu)),
    ("MEMORY", lambda group: size(group.rss) if group.rss else "0"),
)


def report(arguments: argparse.Namespace) -> int:
    """Add the records up; a table, JSON, a picture."""
    config = load_config()
    paths = arguments.paths or ([config.record_dir, config.node_dir] if config.record_dir else [])
    if not paths:
        raise UsageError("Nothing is recorded", "record_dir is off in the configuration.", "Set it, or name files.")
    for path in arguments.paths:
        if not os.path.exists(path):
            raise UsageError(f"{path} does not exist", "", "Name files of records, or directories of them.")
    task_files.settle(config)
    going_on = () if arguments.paths else task_files.running(config)
    try:
        found = summarise(chain(read(paths), going_on))
    except OSError as error:
        raise UsageError("A run record cannot be read", str(error)) from error
    if arguments.svg:
        try:
            with open(arguments.svg, "w", encoding="utf-8") as file:
                file.write(draw(found))
        except OSError as error:
            why = error.strerror or str(error)
            raise OutputLost(f"{arguments.svg} cannot be written", why, "Name another file.") from error
    if arguments.json:
        json_document(found.document())
    else:
        _tables(found)
    return 0


def _tables(found: Report) -> None:
    total = found.total
    users = ", ".join(sorted(_user(uid) for uid in total.users))
    counts = count(total.tasks, "look-up"), count(len(total.images), "unique image")
    print(", ".join((*counts, count(len(total.users), "unique user"))) + (f" ({users})" if users else ""))
    if found.unreadable:
        print(f"{count(found.unreadable, 'line')} not readable")
    if total.images:
        _table("IMAGE", found.images, ("NODES", lambda group: str(len(group.nodes))))
        _table("NODE", found.nodes, ("IMAGES", lambda group: str(len(group.images))))


def _table(what: str, groups: Sequence[Group], other: tuple[str, Callable[[Group], str]]) -> None:
    """A line for each group; what is 0 in all of them has no column, so that most tables fit a terminal."""
    columns = [(heading, [show(group) for group in groups]) for heading, show in (other, *_COLUMNS)]
    columns = [(heading, cells) for heading, cells in columns if set(cells) != {"0"}]
    headings = [heading for heading, _ in columns] + [what]
    rows = list(zip(*(cells for _, cells in columns), [group.name for group in groups], strict=True))
    print()
    table(headings, rows, numbers=len(columns))


def _user(uid: object) -> str:
    try:
        return getpwuid(int(str(uid))).pw_name
    except (KeyError, ValueError):
        return str(uid)
