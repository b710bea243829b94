"""Snakemake workflows for tests: written to a directory of their own and run by the real Snakemake."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from udi_snakemake.activation import front_directory, without_fronts

from tests.support import images, oci
from tests.support.environment import own_environment


def workflow_layers() -> list[oci.Layer]:
    """What a workflow's image has above Debian's Python: ``python``, a marker, a tool, and an environment."""
    return [
        oci.Layer.of(
            oci.directory("opt"),
            oci.file("opt/marker", "the image's file\n"),
            oci.symlink("usr/bin/python", "python3"),
            oci.file("usr/local/bin/fit", "#!/bin/sh\necho fitted by the image: $*\n", 0o755),
        )
    ]


@contextlib.contextmanager
def environment() -> Iterator[dict[str, str]]:
    """The environment of ``udi_env``, with a runtime directory of its own and no other front, container or workflow."""
    with own_environment() as env:
        dropped = ("APPTAINER", "SINGULARITY", "SNAKEMAKE")
        kept = {key: value for key, value in env.items() if not key.startswith(dropped)}
        yield {**kept, "PATH": without_fronts(env["PATH"]), "XDG_RUNTIME_DIR": os.path.dirname(env["HOME"])}


@pytest.fixture(scope="module")
def module_environment() -> Iterator[dict[str, str]]:
    """``env = workflows.module_environment``: what one test of a module pulled and mounted, the next finds."""
    with environment() as env:
        yield env


def push_workflow_image(push: Callable[..., str], path: Path, repository: str, name: str = "base") -> str:
    """Push such an image; returns its ``docker://`` reference, as a Snakefile writes it."""
    layout = images.derive(images.image(name), path, workflow_layers(), env=["FLAVOUR=image", "OMP_NUM_THREADS=99"])
    return "docker://" + push(layout, repository).removeprefix("docker:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A workflow in a directory, and the environment that Snakemake is started in.

    Attributes:
        env: of Snakemake; ``UDI_SNAKEMAKE=1`` is the only thing in it that knows of the front.
        arguments: given to every run.
    """

    directory: Path
    env: Mapping[str, str]
    arguments: tuple[str, ...] = ("--sdm", "apptainer", "--cores", "2")
    prefix: tuple[str, ...] = ()
    python: str = field(default=sys.executable)

    def write(self, text: str, name: str = "Snakefile", mode: int = 0o644) -> Path:
        """Write a file of the workflow; ``text`` may be indented."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        path.chmod(mode)
        return path

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()

    def argv(self, *arguments: str) -> list[str]:
        return [*self.prefix, self.python, "-m", "snakemake", *self.arguments, *arguments]

    def run(
        self, *arguments: str, check: bool = True, timeout: float = 180, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end, both outputs together in ``stdout``."""
        done = subprocess.run(
            self.argv(*arguments),
            cwd=self.directory,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, done.stdout
        return done

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start Snakemake and return at once."""
        return subprocess.Popen(
            self.argv(*arguments),
            cwd=self.directory,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def beside(self, name: str) -> Workflow:
        """Another workflow with the same environment."""
        directory = self.directory.parent / name
        directory.mkdir()
        return replace(self, directory=directory)


def make(directory: Path, env: Mapping[str, str], **settings: object) -> Workflow:
    """A workflow below ``directory``, started as after ``export UDI_SNAKEMAKE=1`` and nothing else."""
    directory.mkdir(parents=True, exist_ok=True)
    clean = {**env, "PATH": without_fronts(env["PATH"]), "UDI_SNAKEMAKE": "1", "PYTHONDONTWRITEBYTECODE": ""}
    clean.pop("UDI_PYTHON", None)
    return Workflow(directory=directory, env=clean, **settings)  # type: ignore[arg-type]


def front(env: Mapping[str, str], argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run the front itself, as ``apptainer``."""
    return subprocess.run(
        [os.path.join(front_directory(), "apptainer"), *argv],
        env={**env, "UDI_PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def in_environment(tmp_path: Path, env: dict[str, str]) -> Workflow:
    """``workflow = workflows.in_environment``: an empty workflow for a test, in the module's ``env``."""
    return make(tmp_path / "work", env)
