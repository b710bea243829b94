"""UDI beside podman, podman-hpc, Charliecloud, enroot, Shifter, Apptainer and bubblewrap, runc, crun by hand.

``python -m benchmarks.peers [--json] [RUNTIME…]`` measures every runtime that is in PATH, or some of them: from a
registry to an image that can be run, a warm start, many starts at once, and tasks in a row.  Root does all of it
twice, as root and as an ordinary user.  Runtimes take turns to start, so that a busy machine is busy for all.  Exit
code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import shlex
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.make_image import contents, make
from benchmarks.measure import Cost, against, keep, measure, need, quiet_machine
from benchmarks.runtimes import MARK, TRUE, Place, Runtime, present
from benchmarks.starts import Sample, Start, adopt_orphans, at_once, children, in_a_row, once, program, settle
from tests.support import certificates, images, oci, user
from tests.support.registry import Registry, running_registry
from udi_core import Host, ImageStore, LaunchSpec, NodeMounts, _process, build, find, load_config

CACHE = Path(".cache/bench").resolve()
STARTS, AT_ONCE = 20, 64
UDI, PYTHON = "udi run", "udi from Python"
BARE = "no container"
#: What has to be done at least.
LEAST = ("bwrap in a mount by hand", "ch-run DIRECTORY")
#: Programs of the distribution come first: a Python of one's own may lack the modules that they import.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(slots=True, kw_only=True)
class Row:
    """What was measured of one way to start; None where it was not."""

    name: str
    runtime: str
    pull: Cost | None = None
    best: float | None = None
    median: float | None = None
    cpu: float | None = None
    at_once: float | None = None
    rate: float | None = None
    failed: str = ""


@dataclass(slots=True, kw_only=True)
class Section:
    """All rows of one account, and what was missing."""

    account: str
    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


# The image ------------------------------------------------------------------------------------------------------------


def push(registry: Registry, layout: oci.Layout, scratch: Path) -> str:
    """Push the image in Docker's format, with a history: enroot asks in a way that an old registry answers with none
    of the newer kinds.  One more layer holds :data:`MARK`.  Returns ``host:port/repository:tag``."""
    manifest = layout.read(layout.find("latest"))
    config = layout.read(manifest["config"])
    copy = oci.Layout(scratch)
    descriptors = []
    for layer in manifest["layers"]:
        (copy.blob_path(layer["digest"])).symlink_to(layout.blob_path(layer["digest"]).resolve())
        descriptors.append({**layer, "mediaType": oci.layer_type("gzip", True)})
    mark = oci.Layer.of(oci.file(MARK.lstrip("/"), "made by benchmarks.peers\n"))
    descriptors.append(copy.add_blob(oci.compress(mark.data, "gzip"), oci.layer_type("gzip", True)))
    config["rootfs"]["diff_ids"].append(oci.digest_of(mark.data))
    config["history"] = [{"created": config["created"], "created_by": "benchmarks.peers"} for _ in descriptors]
    described = copy.add_blob(json.dumps(config).encode(), "application/vnd.docker.container.image.v1+json")
    document = {"schemaVersion": 2, "mediaType": oci.DOCKER_MANIFEST, "config": described, "layers": descriptors}
    copy.tag(copy.add_blob(json.dumps(document).encode(), oci.DOCKER_MANIFEST), "latest")
    return registry.push(copy, "bench/image").removeprefix("docker:")


@contextlib.contextmanager
def serving(layout: oci.Layout, scratch: Path) -> Iterator[tuple[str, str]]:
    """The image in a registry over HTTP, and the same over HTTPS."""
    authority = certificates.make(scratch / "authority", "IP:127.0.0.1")
    tls = {"http": {"tls": {"certificate": str(authority.certificate), "key": str(authority.key)}}}
    with (
        running_registry(scratch / "registry") as plain,
        running_registry(scratch / "registry", configuration=tls) as secure,
    ):
        source = push(plain, layout, scratch / "layout")
        yield source, source.replace(plain.host, secure.host)


# One account ----------------------------------------------------------------------------------------------------------


class Bench:
    """All runtimes of one account, measured in turns.  A context manager: what they left is taken away at its end."""

    def __init__(self, source: str, secure: str, directory: str, only: Sequence[str] = ()) -> None:
        self.root = os.getuid() == 0
        self._source, self._secure, self._top = source, secure, directory
        found, missing = present(self.root)
        self.section = Section(account="root" if self.root else "ordinary user")
        self.section.missing = [f"{each.name}: {each.get}" for each in missing]
        self._runtimes = [each for each in found if not only or each.name in only]
        self._undo: list[tuple[str, dict[str, str]]] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for script, env in reversed(self._undo):
            if script:
                self._script(script, env, check=False)
        user.clean_up(self._top)

    def measure(self) -> None:
        """Pull with each, start with each, and keep the rows."""
        store = self._directory("udi")
        os.environ |= {"UDI_STORE": f"{store}/store", "UDI_NODE_DIR": f"{store}/node"}
        udi = [os.path.join(os.path.dirname(sys.executable), "udi")]
        if not os.access(udi[0], os.X_OK):
            udi = [sys.executable, "-m", "udi_core"]
        reference = f"docker:{self._source}"
        pull = self._pull(shlex.join([*udi, "pull", "-q", reference]), self._environment(store, {}))
        image = find(reference, load_config())
        environment = self._environment(store, {})
        starts: dict[str, Start] = {BARE: program(TRUE, environment, store)}
        rows = {BARE: Row(name=BARE, runtime="")}
        for name, start in (
            (UDI, program([*udi, "run", reference, "--", *TRUE], environment, store)),
            (PYTHON, self._from_python(reference)),
        ):
            starts[name] = start
            rows[name] = Row(name=name, runtime="udi", pull=pull)
        once(program([*udi, "run", reference, "--", "test", "-e", MARK], environment, store))
        for runtime in self._runtimes:
            for name, start, row in self._ready(runtime, image.squashfs):
                rows[name] = row
                if start:
                    starts[name] = start
        self.section.rows = list(rows.values())
        self._time(starts, rows)

    def _ready(self, runtime: Runtime, squashfs: str) -> Iterator[tuple[str, Start | None, Row]]:
        """Pull with a runtime, prepare it, and try each way to start."""
        directory = self._directory(runtime.name.replace(" ", "-"))
        place = Place(directory=directory, source=self._source, secure=self._secure, squashfs=squashfs, root=self.root)
        recipe = runtime.recipe(place)
        environment = self._environment(directory, recipe.env)
        self._undo.append((recipe.undo, environment))
        cost, failed = None, ""
        try:
            cost = self._pull(recipe.pull, environment) if recipe.pull else None
            # Where only a part of it fails, some way to start may work yet; each is tried.
            self._script(recipe.prepare, environment, check=False)
        except (SystemExit, ChildProcessError) as error:
            failed = _last_line(directory) or str(error)
        for name, words in recipe.starts.items():
            row = Row(name=name, runtime=runtime.name, pull=cost, failed=failed)
            if not failed:
                try:
                    once(program([*words, "test", "-e", MARK], environment, directory))
                    once(program([*words, *TRUE], environment, directory))
                except (OSError, ChildProcessError) as error:
                    row.failed = _last_line(directory) or str(error)
            yield name, None if row.failed else program([*words, *TRUE], environment, directory), row

    def _time(self, starts: Mapping[str, Start], rows: Mapping[str, Row]) -> None:
        samples: dict[str, list[Sample]] = {name: [] for name in starts}
        for _ in range(STARTS):
            for name, start in starts.items():
                samples[name].append(once(start))
        for name, start in starts.items():
            row = rows[name]
            row.best = min(each.wall for each in samples[name]) * 1000
            row.median = statistics.median(each.wall for each in samples[name]) * 1000
            row.cpu = statistics.median(each.cpu for each in samples[name]) * 1000
            try:
                row.at_once = at_once(start, AT_ONCE)
                row.rate = in_a_row(start)
            except ChildProcessError as error:
                row.failed = str(error)

    def _from_python(self, reference: str) -> Start:
        config = load_config()
        mounted = NodeMounts(config, ImageStore(config.store)).mount(find(reference, config))
        spec = LaunchSpec(command=TRUE)
        started = []  # one that is forgotten would be waited for by subprocess

        def start() -> int:
            launch = build(spec, mounted, config, Host.observe(mounted))
            started.append(_process.spawn(launch.argv, env=launch.env, pass_fds=launch.pass_fds))
            return started[-1].pid

        return start

    def _directory(self, name: str) -> str:
        path = os.path.join(self._top, name)
        os.mkdir(path)
        return path

    def _environment(self, directory: str, more: Mapping[str, str]) -> dict[str, str]:
        """As after a login, with a home of the runtime's own."""
        # REQUESTS_CA_BUNDLE makes Charliecloud verify a certificate that it was told not to.
        dropped = ("XDG_", "PYTHONDONTWRITE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        path = os.pathsep.join([_PATH, *os.environ["PATH"].split(os.pathsep)])
        account = pwd.getpwuid(os.getuid()).pw_name
        return {
            **kept,
            "PATH": path,
            "HOME": directory,
            "TMPDIR": directory,
            "USER": account,
            "XDG_RUNTIME_DIR": directory,
            **more,
        }

    def _pull(self, script: str, environment: Mapping[str, str]) -> Cost:
        print(f"  {self.section.account}: {script}", file=sys.stderr, flush=True)
        errors = shlex.quote(f"{environment['HOME']}/errors")
        words = ["env", "-i", *(f"{key}={value}" for key, value in environment.items())]
        before = children()
        cost = measure([*words, "sh", "-c", f"cd; {{ {script}; }} 2>>{errors}"])
        settle(before)
        return cost

    def _script(self, script: str, environment: Mapping[str, str], check: bool = True) -> None:
        directory = environment["HOME"]
        before = children()
        _, status = os.waitpid(program(["sh", "-c", f"cd; {script}"], environment, directory)(), 0)
        settle(before, patience=0.1)
        if status and check:
            raise ChildProcessError(f"{script} failed")


def _last_line(directory: str) -> str:
    with contextlib.suppress(OSError):
        lines = Path(directory, "errors").read_text(errors="replace").split("\n")
        return next((each.strip() for each in reversed(lines) if each.strip()), "")
    return ""


# Report ---------------------------------------------------------------------------------------------------------------


def ratio(value: float | None, own: float | None) -> str:
    """How many times UDI's figure another one is."""
    return f"{value / own:.1f}x" if value and own else ""


def table(section: Section) -> Table:
    """One account's rows.  Each ratio is how many times what ``udi run`` takes; of tasks/s, how many times fewer."""
    drawn = Table(title=f"as {section.account}", title_justify="left", title_style="bold")
    drawn.add_column("")
    for heading in ("pull s", "", "CPU s", "written MB", "memory MB", "start ms", "", "best", "CPU ms"):
        drawn.add_column(heading, justify="right")
    for heading in (f"{AT_ONCE} at once s", "", "tasks/s", ""):
        drawn.add_column(heading, justify="right")
    own = next((each for each in section.rows if each.name == UDI), Row(name=UDI, runtime="udi"))
    shown = set()
    for row in section.rows:
        pull = None if row.runtime in shown else row.pull
        shown.add(row.runtime)
        drawn.add_row(
            row.name,
            _figure(pull and pull.wall, 1),
            ratio(pull and pull.wall, own.pull and own.pull.wall),
            _figure(pull and pull.cpu, 1),
            _figure(pull and pull.written / 1e6, 0),
            _figure(pull and pull.memory / 1e6, 0),
            _figure(row.median, 1),
            ratio(row.median, own.median),
            _figure(row.best, 1),
            _figure(row.cpu, 1),
            _figure(row.at_once, 2),
            ratio(row.at_once, own.at_once),
            _figure(row.rate, 0),
            ratio(own.rate, row.rate),
            style="dim" if row.failed else "",
        )
    return drawn


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def judge(sections: Iterable[Section]) -> bool:
    """Half of what each peer takes to pull, and half of what it takes to start.

    bubblewrap in a mount by hand and ``ch-run`` in an unpacked directory are what UDI itself has to do at least: they
    are kept beside its figure, without a target.
    """
    reached = []
    for section in sections:
        rows = {each.name: each for each in section.rows}
        ours, python = rows[UDI], rows[PYTHON]
        told: set[str] = set()
        for row in section.rows:
            if row.runtime in ("", "udi"):
                continue
            if row.pull and ours.pull and row.runtime not in told:
                told.add(row.runtime)
                what = f"pull, {section.account}"
                reached.append(against(what, ours.pull.wall, row.pull.wall, 0.5, " s", peer=row.runtime))
            if row.median and python.median:
                what = f"start from Python, {section.account}"
                if row.name in LEAST:
                    figure = {"what": what, "value": python.median, "unit": "ms", "target": "", "reached": True}
                    keep(**figure, peer=row.name, beside=row.median)
                else:
                    reached.append(against(what, python.median, row.median, 0.5, " ms", peer=row.name))
    return all(reached)


def document(sections: Iterable[Section]) -> dict[str, Any]:
    """All figures, for ``--json``."""
    return {"sections": [asdict(each) for each in sections]}


def section_of(found: Mapping[str, Any]) -> Section:
    """The section that another process printed as JSON."""
    rows = [Row(**{**row, "pull": Cost(**row["pull"]) if row["pull"] else None}) for row in found["rows"]]
    return Section(account=found["account"], rows=rows, missing=found["missing"])


# Main -----------------------------------------------------------------------------------------------------------------


def as_ordinary_user(source: str, secure: str, only: Sequence[str]) -> Section:
    """Measure the same as an account without privileges, in a process of its own."""
    with user.ordinary_user() as account:
        command = [account.python, "-m", "benchmarks.peers", "--served", source, secure, *only]
        here = str(Path(__file__).parents[1])
        path = os.pathsep.join([here, account.env.get("PYTHONPATH", "")])
        # In its home, which goes with it however this ends.
        environment = {**account.env, "PYTHONPATH": path, "TMPDIR": str(account.home)}
        done = _process.spawn(account.argv(command), env=environment, cwd=here, stdout=_process.PIPE)
        output, _ = done.communicate()
    if done.returncode:
        raise SystemExit(f"the ordinary user's run failed with status {done.returncode}")
    return section_of(json.loads(output)["sections"][0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("--json", action="store_true", help="print figures as JSON in place of tables")
    parser.add_argument("--small", action="store_true", help="an image of 100 MB in place of 1 GB")
    parser.add_argument("runtimes", nargs="*", help="names of runtimes; all without one")
    parser.add_argument("--served", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    adopt_orphans()
    if arguments.served:
        with Bench(*arguments.served, tempfile.mkdtemp(prefix="udi-bench-"), arguments.runtimes) as bench:
            bench.measure()
        print(json.dumps(document([bench.section])))
        return 0
    need("tar2sqfs", "docker-registry", "openssl", *images.TOOLS)
    large = not arguments.small and (os.getuid() == 0 or (CACHE / "image/index.json").exists())
    if large:
        need("debootstrap")
    layout = make(CACHE / "image") if large else images.image("base")
    entries, size = contents(layout)
    if not arguments.json:
        print(f"an image of {size / 1e6:.0f} MB, {entries:,} entries; {quiet_machine()}")
        print(f"starts: medians of {STARTS}, all runtimes in turns; ratios: times what `udi run` takes", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="udi-bench-") as scratch,
        serving(layout, Path(scratch)) as served,
        Bench(*served, tempfile.mkdtemp(prefix="udi-bench-"), arguments.runtimes) as bench,
    ):
        bench.measure()
        if not arguments.json:
            show_section(bench.section)
        sections = [bench.section]
        if bench.root:
            sections.append(as_ordinary_user(*served, arguments.runtimes))
            if not arguments.json:
                show_section(sections[-1])
        if arguments.json:
            print(json.dumps(document(sections), indent=1), flush=True)
            return 0
    for each in sections[0].missing:
        print(f"  not measured, for it is not in PATH: {each}")
    return 0 if judge(sections) else 1


def show_section(section: Section) -> None:
    """Print an account's table, and what did not run."""
    Console(width=None if sys.stdout.isatty() else 170).print(table(section))
    for row in section.rows:
        if row.failed:
            print(f"  {row.name} did not run: {row.failed}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
