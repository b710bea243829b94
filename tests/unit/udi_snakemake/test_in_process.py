"""What is done in Snakemake's process: which command lines are understood, and which Snakemake is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from udi_snakemake import in_process
from udi_snakemake.in_process import Asked, Kinds, install, split

HERE = repr(os.getcwd())


def line(word: str, *, flags: str = "--bind '/a b':'/c'", program: str = "apptainer") -> str:
    quoted = word.replace("'", r"'\''")
    return f" {program}  exec --home {HERE} {flags} /w/.snakemake/singularity/1.simg bash -c '{quoted}'"


def test_the_word_in_which_jobs_differ_is_split_off() -> None:
    one, two = split(line("echo 'it''s' one"), "echo 'it''s' one"), split(line("two", program="apptainer"), "two")
    assert isinstance(one, Asked)
    assert isinstance(two, Asked)
    assert one == line("echo 'it''s' one")
    assert one.last == "echo 'it''s' one"
    assert one.before == two.before
    assert one.before.endswith(" bash -c ")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (line("a"), "b"),
        (line("a", program="docker"), "a"),
        *(
            (line("a", flags=f"--bind {path}"), "a")
            for path in ("$HOME", "~", "`id`", "a;b", "a*", "a\nb", "a&", r"a\b")
        ),
        (line("a").replace(HERE, "'/elsewhere'"), "a"),
        ("", ""),
        ("'a'", "a"),
    ],
)
def test_a_line_that_a_shell_could_read_otherwise_is_left_alone(text: str, word: str) -> None:
    found = split(text, word)
    assert found == text
    assert not isinstance(found, Asked)


@pytest.mark.parametrize(
    "changed",
    [
        {"shell": False},
        {"cwd": "/"},
        {"env": None},
        {"env": {}},
        {"env": {"UDI_SNAKEMAKE": "0", "PATH": in_process.front_directory()}},
        {"env": {"UDI_SNAKEMAKE": "1", "PATH": f"/usr/bin:{in_process.front_directory()}"}},
        {"env": {"UDI_SNAKEMAKE": "1", "PATH": in_process.front_directory(), "SLURM_JOB_ID": "1"}},
    ],
)
def test_what_is_not_usual_is_the_front_s(changed: dict[str, Any]) -> None:
    asked = split(line("srun true"), "srun true")
    assert isinstance(asked, Asked)
    env = {"UDI_SNAKEMAKE": "1", "PATH": in_process.front_directory()}
    kinds = Kinds(subprocess)
    for _ in range(3):
        assert kinds.start(asked, {"shell": True, "env": env, **changed}) is None
    assert not kinds._kinds


class TestInstall:
    """Only a Snakemake that is put together like the known ones is touched."""

    @pytest.fixture
    def snakemake(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
        shell: Any = ModuleType("snakemake.shell")
        containers: Any = ModuleType("snakemake.deployment.singularity")
        shell.sp, shell.singularity = subprocess, containers
        containers.shellcmd = lambda img_path, cmd, **settings: line(cmd)
        monkeypatch.setitem(sys.modules, shell.__name__, shell)
        monkeypatch.setitem(sys.modules, containers.__name__, containers)
        return shell, containers

    def test_a_known_one(self, snakemake: tuple[Any, Any]) -> None:
        shell, containers = snakemake
        assert install()
        asked = containers.shellcmd("image", "echo 'hello'")
        assert isinstance(asked, Asked)
        assert asked == line("echo 'hello'")
        assert shell.sp.PIPE == subprocess.PIPE
        assert subprocess.Popen is not shell.sp.Popen
        done = shell.sp.Popen("exit 3", shell=True)
        assert isinstance(done, subprocess.Popen)
        assert done.wait() == 3

    def test_one_that_is_not_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "snakemake.shell", raising=False)
        assert not install()

    def test_one_with_another_signature(self, snakemake: tuple[Any, Any]) -> None:
        shell, containers = snakemake
        containers.shellcmd = lambda image, command: ""
        assert not install()
        assert shell.sp is subprocess

    def test_one_that_starts_its_jobs_otherwise(self, snakemake: tuple[Any, Any]) -> None:
        shell, containers = snakemake
        before = containers.shellcmd
        del shell.sp
        assert not install()
        assert containers.shellcmd is before
