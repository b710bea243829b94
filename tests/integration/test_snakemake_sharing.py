"""Many at once, tags that move, lock files and prefetching: one pull, one digest per run, no race."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import images, oci, workflows
from tests.support.registry import Registry, running_registry
from tests.support.workflows import Workflow, front
from udi_core.transfer import CHUNK

pytest.importorskip("snakemake")
pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry")

UDI = (sys.executable, "-m", "udi_core")


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    with workflows.environment() as environment:
        yield environment


@pytest.fixture
def own_registry() -> Iterator[Registry]:
    # With an access log, to count what was asked of it.
    with running_registry(configuration={"log": {"level": "warn", "accesslog": {"disabled": False}}}) as registry:
        yield registry


def requests(registry: Registry) -> list[str]:
    """``GET /v2/… `` lines of the access log."""
    return [line.split('"')[1] for line in registry.log.read_text().splitlines() if '"GET /v2/' in line]


@pytest.fixture
def version(own_registry: Registry, tmp_path: Path) -> Callable[[str], str]:
    """``version("2")`` moves the tag ``lab/tool:latest`` to an image whose /version says 2; returns the reference."""

    def push(text: str) -> str:
        layer = oci.Layer.of(oci.file("version", f"{text}\n"), oci.directory("bin"))
        layout = images.derive(images.image("nopython"), tmp_path / f"layout-{text}", [layer])
        return "docker://" + own_registry.push(layout, "lab/tool").removeprefix("docker:")

    return push


def write(workflow: Workflow, reference: str) -> Workflow:
    workflow.write(
        f"""
        rule all:
            input: expand("{{number}}.txt", number=range(3))
        rule a:
            output: "{{number}}.txt"
            container: "{reference}"
            shell: "cat /version > {{output}}"
        """
    )
    return workflow


def versions(workflow: Workflow) -> set[str]:
    return {workflow.read(f"{number}.txt").strip() for number in range(3)}


def test_runs_that_share_a_prefix_pull_once_and_run_one_digest(
    tmp_path: Path, env: dict[str, str], own_registry: Registry, version: Callable[[str], str]
) -> None:
    reference = version("1")
    runs = [write(workflows.make(tmp_path / f"run{number}", env), reference) for number in range(4)]
    prefix = str(tmp_path / "prefix")
    started = [run.start("--apptainer-prefix", prefix) for run in runs]
    for process in started:
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
    assert [versions(run) for run in runs] == [{"1"}] * 4
    assert len(os.listdir(prefix)) == 1
    layers = oci.Layout(tmp_path / "layout-1").read(oci.Layout(tmp_path / "layout-1").find())["layers"]
    asked = requests(own_registry)
    for layer in layers:
        # Large layers come in parts; each part is asked for once.
        assert sum(layer["digest"] in line for line in asked) == -(-layer["size"] // CHUNK)


def test_hundreds_of_jobs_start_in_a_fresh_image_at_once(
    tmp_path: Path, env: dict[str, str], version: Callable[[str], str]
) -> None:
    pointer = str(tmp_path / "x.simg")
    assert front(env, ["pull", pointer, version("1")]).returncode == 0

    def job(number: int) -> str:
        done = front(env, ["exec", "--home", str(tmp_path), pointer, "sh", "-c", f"cat /version; echo {number}"])
        return done.stdout + done.stderr

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        assert list(pool.map(job, range(200))) == [f"1\n{number}\n" for number in range(200)]
    status = json.loads(subprocess.run([*UDI, "node", "status", "--json"], env=env, capture_output=True).stdout)
    assert len(status) == 1


def test_a_moved_tag_reaches_new_prefixes_only(
    tmp_path: Path, env: dict[str, str], version: Callable[[str], str]
) -> None:
    first = write(workflows.make(tmp_path / "first", env), version("1"))
    first.run()
    reference = version("2")
    (first.directory / "0.txt").unlink()
    first.run()
    assert versions(first) == {"1"}
    second = write(workflows.make(tmp_path / "second", env), reference)
    second.run()
    assert versions(second) == {"2"}


def test_a_tag_that_moves_between_two_pulls_gives_one_pointer(
    tmp_path: Path, env: dict[str, str], version: Callable[[str], str]
) -> None:
    pointer = str(tmp_path / "x.simg")
    assert front(env, ["pull", pointer, version("1")]).returncode == 0
    reference = version("2")
    assert front(env, ["pull", pointer, reference]).returncode == 0
    assert front(env, ["exec", pointer, "cat", "/version"]).stdout == "1\n"
    assert front(env, ["pull", "--force", pointer, reference]).returncode == 0
    assert front(env, ["exec", pointer, "cat", "/version"]).stdout == "2\n"


class TestLock:
    def test_what_ran_is_locked_and_the_lock_is_honoured(
        self, tmp_path: Path, env: dict[str, str], version: Callable[[str], str]
    ) -> None:
        first = write(workflows.make(tmp_path / "first", env), version("1"))
        first.run()
        reference = version("2")
        done = subprocess.run([*UDI, "lock"], cwd=first.directory, env=first.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "udi.lock: 1" in done.stderr
        locked = json.loads((first.directory / "udi.lock").read_text())["images"]
        assert len(locked) == 1
        # A colleague clones the workflow, with an empty store and a tag that has moved.
        second = write(workflows.make(tmp_path / "second", {**env, "UDI_STORE": str(tmp_path / "store2")}), reference)
        (second.directory / "udi.lock").write_bytes((first.directory / "udi.lock").read_bytes())
        second.run()
        assert versions(second) == {"1"}
        check = subprocess.run([*UDI, "lock", "--check"], cwd=second.directory, env=second.env, capture_output=True)
        assert check.returncode == 0

    def test_update_follows_the_registry(
        self, tmp_path: Path, env: dict[str, str], version: Callable[[str], str]
    ) -> None:
        workflow = write(workflows.make(tmp_path / "w", env), version("1"))

        def lock(*arguments: str) -> str:
            argv = [*UDI, "lock", *arguments]
            done = subprocess.run(argv, cwd=workflow.directory, env=workflow.env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert lock().startswith("added")
        version("2")
        assert lock().startswith("kept")
        assert lock("Snakefile", "--update").startswith("moved")
        workflow.run()
        assert versions(workflow) == {"2"}

    def test_a_pointer_that_disagrees_gives_way_to_the_lock(
        self, tmp_path: Path, env: dict[str, str], version: Callable[[str], str]
    ) -> None:
        workflow = write(workflows.make(tmp_path / "w", env), version("1"))
        subprocess.run([*UDI, "lock"], cwd=workflow.directory, env=workflow.env, check=True, capture_output=True)
        lock = (workflow.directory / "udi.lock").rename(tmp_path / "kept.lock")
        version("2")
        workflow.run()
        assert versions(workflow) == {"2"}
        lock.rename(workflow.directory / "udi.lock")
        workflow.run("--forceall")
        assert versions(workflow) == {"1"}

    def test_check_names_what_is_not_pinned(
        self, tmp_path: Path, env: dict[str, str], version: Callable[[str], str]
    ) -> None:
        reference = version("1")
        workflow = write(workflows.make(tmp_path / "w", env), reference)
        argv = [*UDI, "lock", "--check"]
        done = subprocess.run(argv, cwd=workflow.directory, env=workflow.env, capture_output=True, text=True)
        assert done.returncode == 1
        assert f"not pinned: {reference}" in done.stderr
        assert not (workflow.directory / "udi.lock").exists()


class TestPrefetch:
    def test_afterwards_the_run_needs_no_registry(
        self, tmp_path: Path, env: dict[str, str], version: Callable[[str], str], own_registry: Registry
    ) -> None:
        reference = version("1")
        workflow = workflows.make(tmp_path / "w", env)
        workflow.write(
            f"""
            rule all:
                input: "0.txt", "1.txt"
            rule a:
                output: "0.txt"
                container: "{reference}"
                shell: "cat /version > {{output}}"
            rule b:
                output: "{{number}}.txt"
                container: config["image"]
                shell: "cat /version > {{output}}"
            ruleorder: a > b
            """
        )
        other = own_registry.push(images.image("nopython"), "lab/other").replace("docker:", "docker://")
        argv = [*UDI, "prefetch", "--snakefile", "Snakefile", "--snakemake-args", f"--config image={reference}"]
        done = subprocess.run(argv, cwd=workflow.directory, env=workflow.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "mounted (" in done.stdout
        assert other not in done.stdout
        asked = requests(own_registry)
        assert asked
        workflow.run("--config", f"image={reference}")
        assert workflow.read("0.txt") == workflow.read("1.txt") == "1\n"
        assert requests(own_registry) == asked

    def test_json_and_what_cannot_be_told(
        self, tmp_path: Path, env: dict[str, str], version: Callable[[str], str]
    ) -> None:
        reference = version("1")
        workflow = workflows.make(tmp_path / "w", env)
        workflow.write(
            f"""
            rule a:
                input: "absent"
                output: "a.txt"
                container: config.get("image", "none")
                shell: "true"
            rule b:
                container: "{reference}"
                shell: "true"
            """
        )
        argv = [*UDI, "prefetch", "--json", "--no-mount"]
        done = subprocess.run(argv, cwd=workflow.directory, env=workflow.env, capture_output=True, text=True)
        assert done.returncode == 1
        document = json.loads(done.stdout)
        assert [each["image"] for each in document["images"]] == [reference]
        assert document["images"][0]["mount"] == ""
        assert "Snakefile:5" in document["unknown"][0]

    def test_a_dry_run_needs_no_image(self, tmp_path: Path, env: dict[str, str]) -> None:
        workflow = write(workflows.make(tmp_path / "w", env), "docker://127.0.0.1:9/nothing/here:1")
        done = workflow.run("--dry-run")
        assert "will be pulled" in done.stdout
        assert not Path(env["UDI_STORE"]).exists()
