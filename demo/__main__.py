"""Make an image, serve it, pull, flatten and mount it, and run a command, a Parsl app and a Snakemake rule in it.

Everything is real and on this machine: Debian packages become an image, Debian's registry serves it on a loopback
port, and store and node directory are temporary.  ``python -m demo IMAGE`` takes a public image in its place.
Ends with the status of the first command that failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.app import describe_by_parsl
from tests.support import images, user
from tests.support.registry import running_registry
from udi_core import ImageReference, UdiError, run, spawn

_BIN = os.path.dirname(sys.executable)
_WORKFLOW = Path(__file__).parent / "workflow" / "Snakefile"
_SHOW_SYSTEM = '. /etc/os-release; echo "$PRETTY_NAME"'


class Failed(Exception):
    """A command failed, and has said why; ``status`` is its own."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class Steps:
    """What was done, how long it took, and what came of it."""

    console: Console
    rows: list[tuple[str, float, str]] = field(default_factory=list)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what is appended to the yielded list becomes its result."""
        self.console.print(f"[bold]{name}[/bold]")
        result: list[str] = []
        started = time.monotonic()
        yield result
        self.rows.append((name, time.monotonic() - started, " ".join(result)))

    def table(self) -> Table:
        table = Table(title="UDI demo", title_justify="left")
        table.add_column("step", no_wrap=True)
        table.add_column("seconds", justify="right")
        table.add_column("result", overflow="fold")
        for name, seconds, result in self.rows:
            table.add_row(name, f"{seconds:.2f}", result)
        return table


def udi(*arguments: str) -> None:
    """Run ``udi`` on this terminal, as a person would.

    Raises:
        Failed: it ended with another status than 0.
    """
    status = spawn([f"{_BIN}/udi", *arguments]).wait()
    if status:
        raise Failed(status)


def ask(*arguments: str) -> str:
    """Run ``udi``; returns what it printed."""
    return run([f"{_BIN}/udi", *arguments]).stdout.decode().strip()


def demo(public: str | None, steps: Steps, directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        if public:
            reference = str(ImageReference.parse(public))
        else:
            with steps.step("make an image from Debian packages") as result:
                layout = images.image("trixie")
                size = sum(each["size"] for each in layout.read(layout.find())["layers"])
                result.append(f"Debian 13, 3 layers, {size / 1e6:.0f} MB")
            with steps.step("serve it from a loopback registry") as result:
                registry = stack.enter_context(running_registry())
                reference = str(ImageReference.parse(registry.push(layout, "demo/debian", "13")))
                result.append(registry.url)
        in_image(reference, steps, directory)


def in_image(reference: str, steps: Steps, directory: Path) -> None:
    with steps.step("udi pull: download, check, flatten") as result:
        udi("pull", reference)
        image = json.loads(ask("inspect", "--json", reference))
        result.append(f"one squashfs of {image['size'] / 1e6:.0f} MB")
    with steps.step("udi node warm: mount on this node") as result:
        udi("node", "warm", reference)
        result.append(f"by the {json.loads(ask('node', 'status', '--json'))[0]['backend']} backend")
    with steps.step("udi run: a plain command") as result:
        result.append(ask("run", reference, "--", "sh", "-c", _SHOW_SYSTEM))
    with steps.step("udi run: the same, warm") as result:
        result.append(ask("run", reference, "--", "sh", "-c", _SHOW_SYSTEM))
    with steps.step("a Parsl app with @image") as result:
        result.append(describe_by_parsl(reference, str(directory / "parsl"), python=image["python"] is not None))
    with steps.step("a Snakemake rule with container:") as result:
        result.append(describe_by_snakemake(reference, directory / "snakemake"))


def describe_by_snakemake(reference: str, directory: Path) -> str:
    """What a rule in the image says of its system."""
    directory.mkdir()
    argv = [f"{_BIN}/snakemake", "--snakefile", str(_WORKFLOW), "--directory", str(directory), "--cores", "1"]
    argv += ["--sdm", "apptainer", "--quiet", "--config", f"image={reference}"]
    run(argv, env={**os.environ, "UDI_SNAKEMAKE": "1"})
    return (directory / "describe.txt").read_text().strip()


def main(argv: list[str]) -> int:
    console = Console(stderr=True)
    steps = Steps(console)
    with tempfile.TemporaryDirectory(prefix="udi-demo-", ignore_cleanup_errors=True) as temporary:
        directory = Path(temporary)
        os.environ |= {"UDI_STORE": f"{temporary}/store", "UDI_NODE_DIR": f"{temporary}/node"}
        # Parsl's killed workers leave temporary files behind: let them be in here, and go with it.
        (directory / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(directory / "tmp")
        os.environ["PATH"] = f"{_BIN}:{os.environ.get('PATH', os.defpath)}"
        try:
            demo(argv[0] if argv else None, steps, directory)
            with steps.step("udi node clean: leave nothing behind") as result:
                udi("node", "clean")
                left = [*user.mounts_below(temporary), *map(str, user.processes_of(temporary))]
                result.append(f"still there: {', '.join(left)}" if left else "no mount, no process")
            Console(width=None if sys.stdout.isatty() else 110).print(steps.table())
            return 1 if left else 0
        except Failed as failure:
            return failure.status
        except UdiError as error:
            console.print(f"demo: {error}", style="red", markup=False)
            return error.exit_code
        finally:
            user.clean_up(temporary)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
