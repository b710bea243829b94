"""``%udi`` and ``%%udi``: images, cells in images, and cells as tasks on many nodes."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import html
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from importlib.metadata import entry_points
from typing import Any, NoReturn, Protocol

from IPython.core.error import UsageError as MagicError
from IPython.core.magic import Magics, line_cell_magic, magics_class

from udi_core import ImageReference, ImageStore, NodeMounts, UdiError, UsageError, find, load_config
from udi_jupyter.board import Board
from udi_jupyter.cells import Cell, run_cell, split_names
from udi_jupyter.futures import Tasks

#: Entry point group of what can run cells on other nodes: a callable like :class:`Nodes`.
GROUP = "udi.nodes"

_POLL_SECONDS = 0.5


class Nodes(Protocol):
    """What an entry point of :data:`GROUP` makes; udi_parsl.notebook has one."""

    count: int

    def ready(self) -> int: ...
    def submit(
        self,
        source: str,
        *,
        image: str,
        python: bool,
        names: Mapping[str, Any],
        volumes: Sequence[str] = ...,
        env: Mapping[str, str] | None = ...,
        workdir: str | None = ...,
    ) -> Future[Any]: ...
    def close(self) -> None: ...


@magics_class
class UdiMagics(Magics):
    """The magics of one IPython."""

    shell: Any

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._image = ""
        self._options: argparse.Namespace = cell_parser().parse_args([])
        self._nodes: Nodes | None = None
        self._tasks: list[Future[Any]] = []
        # Nodes are not kept by a notebook that has ended.
        atexit.register(self.close)

    @line_cell_magic
    def udi(self, line: str, cell: str | None = None) -> Any:
        """``%udi images|pull|use|status|nodes``, or ``%%udi [options] [IMAGE]`` above a cell; both know ``--help``."""
        with told():
            words = shlex.split(line)
            if cell is None:
                return self._line(line_parser().parse_args(words))
            return self._cell(cell_parser().parse_args(words), cell)
        return None  # after --help

    def close(self) -> None:
        """Give the nodes back; may be called twice."""
        if self._nodes is not None:
            self._nodes.close()
            self._nodes = None

    def _line(self, asked: argparse.Namespace) -> Any:
        if asked.verb == "images":
            return images()
        if asked.verb == "pull":
            with Board(self.shell) as board:
                for reference in asked.references:
                    image = find(reference, load_config(), progress=board.show)
                    print(f"{reference}  {image.digest[7:19]}  {image.size / 1e6:.0f} MB")
        elif asked.verb == "use":
            self._use(asked)
        elif asked.verb == "status":
            return self._status()
        elif asked.count is not None:
            if asked.count:
                self._take(asked.count, self._image, asked)
            else:
                self.close()
        return None

    def _use(self, asked: argparse.Namespace) -> None:
        if asked.image:
            ImageReference.parse(asked.image)
            self._image, self._options = asked.image, asked
        print(f"Cells run in {self._image}" if self._image else "No image is in use: %udi use REF")

    def _status(self) -> Table:
        config = load_config()
        mounted = NodeMounts(config, ImageStore(config.store)).status()
        rows = [["image in use", self._image or "none"], ["store", config.store]]
        rows += [
            ["mounted here", f"{ImageReference.parse(each.reference).short}  ({each.backend})"] for each in mounted
        ]
        if self._nodes is not None:
            done = sum(task.done() for task in self._tasks)
            rows.append(["nodes", f"{self._nodes.ready()} of {self._nodes.count} ready"])
            rows.append(["tasks", f"{done} of {len(self._tasks)} done"])
        return Table(["", ""], rows)

    def _cell(self, asked: argparse.Namespace, source: str) -> Tasks | None:
        image = asked.image or self._image
        if not image:
            raise UsageError("The cell names no image", "", "Write %%udi REF, or once: %udi use REF")
        defaults = self._options if not asked.image else cell_parser().parse_args([])
        cell = Cell(
            source=source,
            image=image,
            python=asked.python,
            volumes=(*defaults.volume, *asked.volume),
            env=dict(each.split("=", 1) for each in (*defaults.env, *asked.env)),
            workdir=asked.workdir or defaults.workdir,
            given={name: self._variable(name) for name in asked.given},
            wanted=tuple(asked.wanted),
        )
        if len(cell.wanted) > 1 and (asked.nodes is not None or not cell.python):
            kind = "A shell cell" if asked.nodes is None else "A cell on nodes"
            raise UsageError(f"{kind} has one output", "", "Name one variable: --out text")
        if asked.nodes is not None:
            return self._spread(asked, cell)
        if asked.each:
            raise UsageError("--for needs nodes", "", "Write --nodes 1 for this machine.")
        with Board(self.shell) as board:
            status, made = run_cell(cell, board.show)
        if status:
            raise MagicError(f"The cell ended with status {status}")
        self.shell.push(made)
        return None

    def _spread(self, asked: argparse.Namespace, cell: Cell) -> Tasks:
        """A cell as tasks on nodes: as many as there are values, or nodes."""
        nodes = self._take(asked.nodes, cell.image, asked)
        name, values = "UDI_TASK", list(range(nodes.count))
        if asked.each:
            name, _, expression = asked.each.partition("=")
            if not name.isidentifier() or not expression:
                raise UsageError(f"--for {asked.each!r} is not NAME=VALUES", "", "For example: --for seed=range(10)")
            try:
                values = list(self.shell.ev(expression))
            except Exception as error:
                raise UsageError(
                    f"--for {asked.each!r} has no values",
                    f"{type(error).__name__}: {error}",
                    "Quote what has quotes or blanks in it, or name a variable of the notebook.",
                ) from error
        futures = [
            nodes.submit(
                cell.source,
                image=cell.image,
                python=cell.python,
                names={**cell.given, name: value},
                volumes=cell.volumes,
                env=cell.env,
                workdir=cell.workdir,
            )
            for value in values
        ]
        self._tasks += futures
        tasks = Tasks(futures, [f"{name} = {value!r}" for value in values])
        for wanted in cell.wanted[:1]:
            self.shell.push({wanted: tasks})
        if not asked.background:
            with Board(self.shell) as board:
                self._watch(board, nodes, tasks)
        return tasks

    def _watch(self, board: Board, nodes: Nodes, tasks: Tasks) -> None:
        """Show how many nodes and tasks are ready until all tasks have ended; an interrupt leaves them running."""
        while True:
            board.count("Nodes with the image", nodes.ready(), nodes.count)
            board.count("Tasks done", tasks.done, len(tasks))
            if tasks.done == len(tasks):
                return
            wait([future for future in tasks if not future.done()], timeout=_POLL_SECONDS)

    def _take(self, count: int, image: str, asked: argparse.Namespace) -> Nodes:
        """Nodes of this notebook: those that it has, or ``count`` new ones."""
        if count < 1:
            raise UsageError("At least one node is needed", "", "Write --nodes 1.")
        if self._nodes is not None:
            if self._nodes.count == count:
                return self._nodes
            if not all(task.done() for task in self._tasks):
                raise UsageError("There are tasks on other nodes still", "", "Wait for them, or write: %udi nodes 0")
            self.close()
        make = next(iter(entry_points(group=GROUP)), None)
        try:
            start = make.load() if make is not None else None
        except ImportError:
            start = None
        if start is None:
            raise UsageError(
                "Cells on nodes need Parsl", "It is not installed.", "pip install 'udi-workflows[parsl,jupyter]'"
            )
        if image:
            with Board(self.shell) as board:
                find(image, load_config(), progress=board.show)
        names = ("partition", "account", "constraint", "walltime", "workers", "setup", "here")
        options = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
        made: Nodes = start(count, images=[image] if image else [], **options)
        self._nodes, self._tasks = made, []
        return made

    def _variable(self, name: str) -> Any:
        if name not in self.shell.user_ns:
            raise UsageError(
                f"There is no variable {name!r} in the notebook", "--in names it.", "Set it in a cell before."
            )
        return self.shell.user_ns[name]


def images() -> Table:
    """The images of the store."""
    store = ImageStore(load_config().store)
    names: dict[str, list[str]] = {}
    for tag in store.tags():
        for digest in dict.fromkeys(tag.images.values()):
            names.setdefault(digest, []).append(ImageReference.parse(tag.reference).short)
    found = sorted(store.images(), key=lambda image: image.created, reverse=True)
    return Table(
        ["image id", "size", "made", "python", "reference"],
        [
            [
                image.digest[7:19],
                f"{image.size / 1e6:.0f} MB",
                image.created[:10],
                image.python.version if image.python else "-",
                ", ".join(names.get(image.digest, ["-"])),
            ]
            for image in found
        ],
    )


class Table:
    """Text in columns, as HTML where it can be shown."""

    def __init__(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.headings, self.rows = list(headings), [list(row) for row in rows]

    def __repr__(self) -> str:
        lines = [self.headings, *self.rows] if any(self.headings) else self.rows
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], kind: str) -> str:
            inside = "".join(f"<{kind} style='text-align:left'>{html.escape(cell)}</{kind}>" for cell in cells)
            return f"<tr>{inside}</tr>"

        top = line(self.headings, "th") if any(self.headings) else ""
        return f"<table>{top}{''.join(line(row, 'td') for row in self.rows)}</table>"


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Errors of ours are messages, not tracebacks; the cell fails all the same.  Ends at ``--help`` without one."""
    try:
        yield
    except _Helped:
        pass
    except (UdiError, ValueError) as error:
        raise MagicError(str(error)) from error


class _Helped(Exception):
    """``--help`` was asked for, and printed."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "", f"See: {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Helped


def line_parser() -> argparse.ArgumentParser:
    """What ``%udi`` understands."""
    # IPython gives a cell magic no line without a cell below it: %%udi --help alone would be an error.
    cells = f"above a cell:\n{cell_parser().format_help()}"
    parser = _Parser(
        prog="%udi",
        description="Images of this notebook",
        epilog=cells,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("images", help="the images of the store")
    pull = verbs.add_parser("pull", help="bring images into the store")
    pull.add_argument("references", nargs="+", metavar="REF")
    use = verbs.add_parser("use", help="the image of cells that name none; without REF: say which it is")
    _surroundings(use)
    use.add_argument("image", nargs="?", metavar="REF")
    verbs.add_parser("status", help="what is in use, mounted and running")
    nodes = verbs.add_parser("nodes", help="ask for nodes, or give them back (0)")
    nodes.add_argument("count", nargs="?", type=int, metavar="N")
    _batch(nodes)
    return parser


def cell_parser() -> argparse.ArgumentParser:
    """What ``%%udi`` understands."""
    parser = _Parser(prog="%%udi", description="Run the cell in an image", allow_abbrev=False)
    parser.add_argument("-p", "--python", action="store_true", help="the cell is Python; default: shell")
    _surroundings(parser)
    parser.add_argument("--in", dest="given", type=split_names, default=[], metavar="A,B", help="variables to give it")
    parser.add_argument("--out", dest="wanted", type=split_names, default=[], metavar="C", help="variables it makes")
    parser.add_argument("--nodes", type=int, metavar="N", help="run it as tasks on N nodes, through Parsl")
    parser.add_argument("--for", dest="each", default="", metavar="X=VALUES", help="one task for each value")
    parser.add_argument("--background", action="store_true", help="do not wait for the tasks")
    _batch(parser)
    parser.add_argument("image", nargs="?", metavar="REF", help="default: that of %%udi use")
    return parser


def _surroundings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-V", "--volume", action="append", default=[], metavar="SRC:DST[:ro]")
    parser.add_argument("-e", "--env", action="append", default=[], type=_assignment, metavar="K=V")
    parser.add_argument("-w", "--workdir", metavar="DIR")


def _batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--constraint")
    parser.add_argument("--time", dest="walltime", metavar="HH:MM:SS")
    parser.add_argument("--workers", type=int, metavar="N", help="tasks at once on a node; default: one per core")
    parser.add_argument("--here", action="store_true", help="on this machine, even if there is a batch system")
    parser.add_argument("--setup", metavar="LINES", help="shell lines that each node runs first")


def _assignment(text: str) -> str:
    if "=" not in text:
        raise UsageError(f"--env {text!r} is not K=V", "", "For example: --env THREADS=4")
    return text
