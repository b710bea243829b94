"""``udi report``: where the time went, from the run records."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pwd import getpwuid
from typing import Any

from udi_core import record
from udi_core.chart import draw, seconds
from udi_core.cli.show import json_document, size
from udi_core.config import load_config
from udi_core.errors import UdiError, UsageError
from udi_core.report import Group, Report, read, summarise


def report(arguments: argparse.Namespace) -> int:
    """Add the records up; a table, JSON, a picture."""
    config = load_config()
    paths = arguments.paths or [path for path in (config.record_dir, record.path(config)) if path]
    if not paths:
        raise UsageError("Nothing is recorded", "record_dir is off in the configuration.", "Set it, or name files.")
    try:
        found = summarise(read(paths))
    except OSError as error:
        raise UsageError("A run record cannot be read", str(error)) from error
    if arguments.svg:
        try:
            with open(arguments.svg, "w", encoding="utf-8") as file:
                file.write(draw(found))
        except OSError as error:
            raise UdiError(f"{arguments.svg} cannot be written", error.strerror or str(error)) from error
    if arguments.json:
        json_document(found.document())
    else:
        _tables(found)
    return 0


def _tables(found: Report) -> None:
    total = found.total
    users = ", ".join(sorted(_user(uid) for uid in total.users))
    print(f"{total.tasks} look-ups, {len(total.images)} unique images, {len(total.users)} unique users ({users})")
    if found.unreadable:
        print(f"{found.unreadable} lines were not readable")
    if total.images:
        _table("image", found.images, ("nodes", lambda group: str(len(group.nodes))))
        _table("node", found.nodes, ("images", lambda group: str(len(group.images))))


def _table(what: str, groups: Sequence[Group], other: tuple[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    headings = (other[0], "tasks", "failed", "mounts", "pull", "mount", "start", "each", "in tasks", "CPU", "memory")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(what, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        document = group.document()
        table.add_row(
            group.name,
            other[1](group),
            *(str(number) for number in (group.tasks, group.failed, group.mounts)),
            *(seconds(group.seconds[phase]) for phase in ("pull", "mount", "setup")),
            seconds(document["median_setup"] or 0.0),
            seconds(group.seconds["task"]),
            seconds(group.cpu),
            size(group.rss) if group.rss else "",
        )
    print()
    Console(soft_wrap=False).print(table)


def _user(uid: object) -> str:
    try:
        return getpwuid(int(str(uid))).pw_name
    except (KeyError, ValueError):
        return str(uid)
