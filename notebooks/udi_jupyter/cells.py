"""A cell of a notebook, run in an image: shell or Python, its output shown as it comes."""

from __future__ import annotations

import codecs
import contextlib
import os
import pickle
import selectors
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from udi_core import (
    DEVNULL,
    PIPE,
    LaunchSpec,
    Process,
    ProgressSink,
    TimeoutExpired,
    UnsupportedImage,
    UsageError,
    Volume,
    enter,
    find,
    load_config,
    spawn,
)
from udi_jupyter.ending import record_end

#: Where a Python cell finds itself and the notebook's variables.
DIRECTORY = "/.udi/cell"

# Runs on any Python 3; the cell's own names are those of __main__.
_PYTHON = f"""
import pickle, sys
with open("{DIRECTORY}/given", "rb") as file:
    names, wanted, source = pickle.load(file)
sys.argv = ["cell"]
space = {{"__name__": "__main__"}}
space.update(names)
try:
    exec(compile(source, "cell", "exec"), space)
except Exception as error:
    import linecache, traceback
    linecache.cache["cell"] = len(source), None, source.splitlines(True), "cell"
    traceback.print_exception(type(error), error, error.__traceback__.tb_next)
    sys.exit(1)
unset = [name for name in wanted if name not in space]
if unset:
    sys.exit("The cell has not set " + ", ".join(unset) + ", which --out names.")
if wanted:
    with open("{DIRECTORY}/made", "wb") as file:
        pickle.dump({{name: space[name] for name in wanted}}, file, protocol=4)
"""
_PATIENCE = 5.0  # seconds that an interrupted cell has to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is to be run.

    Attributes:
        source: shell or Python.
        given: variables of the notebook: of a shell's environment, or of a Python cell.
        wanted: names whose values a Python cell gives back; a shell cell gives what it prints, by one name.
    """

    source: str
    image: str
    python: bool = False
    volumes: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()


def run_cell(cell: Cell, progress: ProgressSink) -> tuple[int, dict[str, Any]]:
    """Run a cell to its end and show what it prints; its exit status, and the variables that it made.

    Raises:
        UdiError: the image cannot be had, or lacks what the cell needs.
        KeyboardInterrupt: after the cell was interrupted, and has ended.
    """
    asked = time.time()
    config = load_config()
    image = find(cell.image, config, progress=progress)
    if cell.python and image.python is None:
        raise UnsupportedImage(f"{cell.image} has no Python 3", "", "Leave out --python: the cell then is shell.")
    with contextlib.ExitStack() as stack:
        support: tuple[Volume, ...] = ()
        env = dict(cell.env)
        directory = ""
        if cell.python:
            assert image.python is not None
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="udi-cell-"))
            _give(cell, directory)
            support = (Volume(source=directory, target=DIRECTORY),)
            command: tuple[str, ...] = (image.python.path, "-c", _PYTHON)
        else:
            env |= {name: str(value) for name, value in cell.given.items()}
            command = (image.shell or "/bin/sh", "-c", cell.source)
        spec = LaunchSpec(
            command=command,
            volumes=tuple(map(Volume.parse, cell.volumes)),
            env=env,
            workdir=cell.workdir,
            support=support,
            by="jupyter",
            die_with_parent=True,
        )
        launch = stack.enter_context(enter(cell.image, spec, config=config, progress=progress))
        keep = bool(cell.wanted) and not cell.python
        printed: list[str] = []
        began = time.time()
        process = spawn(
            launch.argv,
            env=launch.env,
            pass_fds=launch.pass_fds,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        with ended_with(process):
            copy_output(process, printed.append if keep else sys.stdout.write, sys.stderr.write)
            status = process.wait()
        record_end(launch, asked=asked, began=began, status=status)
        if status or not cell.wanted:
            return status, {}
        if keep:
            return status, {cell.wanted[0]: "".join(printed)}
        return status, _take(directory)


def _give(cell: Cell, directory: str) -> None:
    try:
        # What any Python 3 can read.
        given = pickle.dumps((dict(cell.given), cell.wanted, cell.source), protocol=3)
    except Exception as error:
        raise UsageError(
            "A variable cannot be given to the cell", f"{type(error).__name__}: {error}", "Give plain values."
        ) from error
    with open(os.path.join(directory, "given"), "wb") as file:
        file.write(given)


def _take(directory: str) -> dict[str, Any]:
    try:
        with open(os.path.join(directory, "made"), "rb") as file:
            made: dict[str, Any] = pickle.load(file)  # noqa: S301 - from a program that runs as this user
            return made
    except Exception as error:
        raise UsageError(
            "The cell's variables cannot be read by the notebook's Python",
            f"{type(error).__name__}: {error}",
            "Bring back plain values, or install here what they are made of.",
        ) from error


@contextlib.contextmanager
def ended_with(process: Process[bytes]) -> Iterator[None]:
    """Interrupt the process and all that it started when this one is interrupted; kill what does not end."""
    try:
        yield
    except BaseException:
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutExpired):
                process.wait(_PATIENCE)
                break
        raise


def copy_output(process: Process[bytes], out: Callable[[str], object], err: Callable[[str], object]) -> None:
    """Pass on what a process writes, until it closes both of its outputs."""
    with selectors.DefaultSelector() as selector:
        for stream, write in ((process.stdout, out), (process.stderr, err)):
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            selector.register(stream, selectors.EVENT_READ, (decoder, write))  # type: ignore[arg-type]
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 1 << 16)
                decoder, write = key.data
                text = decoder.decode(data, final=not data)
                if text:
                    write(text)
                    if write is not out or out is sys.stdout.write:
                        sys.stdout.flush()
                if not data:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]


def split_names(text: str) -> Sequence[str]:
    """``"a, b"`` -> ``["a", "b"]``.

    Raises:
        UsageError: one of them cannot be a variable.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not name.isidentifier():
            raise UsageError(f"{name!r} is not the name of a variable", "", "Write --in a,b --out c.")
    return names
