"""Warm starts: what the front repeats without Python, and all that keeps it from doing so."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from udi_snakemake import activation, warm

POINTER = '{"udi-pointer": 1}\n'
#: Stands for Python: says that it was started, and shows what the front left for it.
STUB = """#!/bin/sh
printf %s "$UDI_FRONT_ASKED" >asked
printf %s "$UDI_FRONT_IMAGE" >image
printf '%s\\n' "$@" >words
echo Python
"""
#: Stands for bwrap and the image: shows the word that changes, and the environment.
PROGRAM = """#!/bin/sh
printf '%s\\n' "$1"
env >seen
"""


@pytest.fixture(params=["sh", "bash"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    """The system's shell, which is dash on Debian, and the other one that systems have."""
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    return [request.param] if request.param == "sh" else ["bash", "--posix"]


@dataclass(kw_only=True)
class Node:
    """A directory that holds all that a launch is made of."""

    path: Path
    shell: list[str]
    env: dict[str, str] = field(default_factory=dict)

    def ask(self, *argv: str, name: str = "apptainer", prefix: Sequence[str] = (), cwd: str = ".", **env: str) -> str:
        done = subprocess.run(
            [*prefix, *self.shell, os.path.join(activation.front_directory(), name), *argv],
            env={**self.env, **env},
            cwd=self.path / cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        return done.stdout

    def job(self, word: str = "word", prefix: Sequence[str] = (), **env: str) -> str:
        return self.ask("exec", str(self.path / "x.simg"), "bash", "-c", word, prefix=prefix, **env)

    def question(self) -> warm.Question:
        assert self.job() == "Python\n"
        environ = {"UDI_FRONT_ASKED": (self.path / "asked").read_text(), "UDI_FRONT_IMAGE": "x.simg", "OTHER": "1"}
        question = warm.take_question(environ)
        assert question is not None
        assert environ == {"OTHER": "1"}
        return question

    def remember(self, environ: dict[str, str] | None = None, **changes: str) -> None:
        """What Python does after a cold start; ``changes`` are the variables of the launch."""
        lease = os.open(self.path / "lease", os.O_RDWR)
        try:
            warm.remember(
                self.question(),
                argv=[str(self.path / "program")],
                env={**self.env, **changes},
                leases=[lease],
                root=str(self.path / "root"),
                record=(str(self.path / "record.jsonl"), '{"by":"snakemake"'),
                inputs=[str(self.path / name) for name in ("x.simg", "config", "absent")],
                environ=environ or self.env,
            )
        finally:
            os.close(lease)

    @property
    def kept(self) -> list[str]:
        directory = self.path / f"udi-front-{os.geteuid()}"
        return sorted(os.listdir(directory)) if directory.exists() else []


@pytest.fixture
def node(tmp_path: Path, shell: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    for name, text in (("stub", STUB), ("program", PROGRAM)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "x.simg").write_text(POINTER)
    (tmp_path / "config").write_text("two\nlines\n")
    os.utime(tmp_path / "config", (1_700_000_000, 1_700_000_000))
    (tmp_path / "lease").touch()
    (tmp_path / "root" / "usr").mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    env = {
        "PATH": os.environ["PATH"],
        "XDG_RUNTIME_DIR": str(tmp_path),
        "UDI_PYTHON": str(tmp_path / "stub"),
        "PWD": str(tmp_path),
        "ODD": 'it\'s "odd" \\ $HOME `x`\nand long',
    }
    yield Node(path=tmp_path, shell=shell, env=env)


def test_only_the_last_word_may_differ(node: Node) -> None:
    node.remember()
    assert node.job("first") == "first\n"
    (task,) = (node.path / "tasks").iterdir()
    assert json.loads(task.read_text()) == {"by": "snakemake"}
    assert node.job("it's $HOME\n*") == "it's $HOME\n*\n"
    assert node.ask("exec", str(node.path / "x.simg"), "sh", "-c", "word") == "Python\n"
    assert node.ask("exec", "--nv", str(node.path / "x.simg"), "bash", "-c", "word") == "Python\n"
    assert node.ask("exec", str(node.path / "x.simg"), "bash", "-cword") == "Python\n"
    assert node.ask("exec", str(node.path / "x.simg"), "bash", "-c", "word", name="singularity") == "Python\n"
    assert node.ask("exec", str(node.path / "x.simg"), "bash", "-c", "word", cwd="root") == "Python\n"
    assert node.job(NEW="variable") == "Python\n"
    assert node.job(ODD="other") == "Python\n"


def test_the_environment_is_that_of_the_launch(node: Node) -> None:
    node.env["GONE"] = "host's"
    environ = dict(node.env)
    del node.env["GONE"]
    node.env, launch = environ, node.env
    lease = os.open(node.path / "lease", os.O_RDWR)
    warm.remember(
        node.question(),
        argv=[str(node.path / "program")],
        env={**launch, "QUOTED": "a'b\nc", "PATH": "/usr/bin:/bin"},
        leases=[lease],
        root=str(node.path / "root"),
        record=("", ""),
        inputs=[],
        environ=environ,
    )
    os.close(lease)
    assert node.job() == "word\n"
    seen = (node.path / "seen").read_text()
    assert "QUOTED=a'b\nc\n" in seen
    assert f"ODD={launch['ODD']}\n" in seen
    assert "PATH=/usr/bin:/bin\n" in seen
    assert "GONE" not in seen
    assert "UDI_FRONT" not in seen


def test_the_words_are_handed_to_python_and_the_environment_is_not_among_them(node: Node) -> None:
    node.job("a b\n*", SECRET="hunter2")
    assert (node.path / "words").read_text().endswith("x.simg\nbash\n-c\na b\n*\n")
    assert "hunter2" in (node.path / "asked").read_text()
    assert "hunter2" not in (node.path / "words").read_text()


def change_pointer(node: Node) -> None:
    (node.path / "x.simg").write_text(POINTER.replace("1", "2"))


def touch_config(node: Node) -> None:
    os.utime(node.path / "config", (1_700_000_001, 1_700_000_001))


def move_an_older_file_over_config(node: Node) -> None:
    (node.path / "older").write_text("two\nlines\n")
    os.utime(node.path / "older", (1_600_000_000, 1_600_000_000))
    os.replace(node.path / "older", node.path / "config")


def remove_config(node: Node) -> None:
    os.unlink(node.path / "config")


def make_what_was_absent(node: Node) -> None:
    (node.path / "absent").touch()


def unmount(node: Node) -> None:
    os.rmdir(node.path / "root" / "usr")


def remove_the_mount(node: Node) -> None:
    shutil.rmtree(node.path / "root")


def remove_the_lease(node: Node) -> None:
    os.unlink(node.path / "lease")


@pytest.mark.parametrize(
    "change",
    [
        change_pointer,
        touch_config,
        move_an_older_file_over_config,
        remove_config,
        make_what_was_absent,
        unmount,
        remove_the_mount,
        remove_the_lease,
    ],
)
def test_what_changed_is_pythons_to_do(node: Node, change: Callable[[Node], None]) -> None:
    node.remember()
    assert node.job() == "word\n"
    change(node)
    assert node.job() == "Python\n"


def test_a_mount_that_is_being_taken_away_is_not_used(node: Node) -> None:
    node.remember()
    with open(node.path / "lease") as reaper:
        fcntl.flock(reaper, fcntl.LOCK_EX)
        assert node.job() == "Python\n"
    assert node.job() == "word\n"


def test_the_program_holds_the_lease_and_marks_it_as_used(node: Node) -> None:
    (node.path / "program").write_text('#!/bin/sh\nflock -n -x "${0%/*}/lease" true && echo free || echo held\n')
    node.remember()
    os.utime(node.path / "lease", (1, 1))
    assert node.job() == "held\n"
    assert os.stat(node.path / "lease").st_mtime > 1


def test_a_descriptor_of_the_caller_stays_the_callers(node: Node) -> None:
    node.remember()
    assert node.job(prefix=("sh", "-c", 'exec "$@" 9<config', "sh")) == "Python\n"


def test_a_launch_is_repeated_for_a_while_only(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "LIFETIME", 0)
    node.remember()
    assert node.kept
    assert node.job() == "Python\n"


def test_files_that_may_change_within_the_second_are_not_relied_on(node: Node) -> None:
    os.utime(node.path / "config")
    node.remember()
    assert node.kept == []


def test_names_that_no_shell_can_set_are_left_to_python(node: Node) -> None:
    node.remember(environ={**node.env, "BASH_FUNC_x%%": "() { :; }"})
    assert node.kept == []


def test_what_is_kept_is_the_users_alone_and_not_for_ever(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.remember()
    directory = node.path / f"udi-front-{os.geteuid()}"
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert [stat.S_IMODE(os.stat(directory / name).st_mode) for name in node.kept] == [0o600]
    before = node.kept
    monkeypatch.setattr(warm, "_MOST", 1)
    node.env["NEW"] = "1"
    node.remember()
    node.env["NEW"] = "2"
    node.remember()
    assert len(node.kept) == 3
    assert [name for name in node.kept if not os.stat(directory / name).st_size] == before


def test_what_is_forgotten_is_empty_before_it_is_gone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.remember()
    directory = node.path / f"udi-front-{os.geteuid()}"
    (kept,) = node.kept
    monkeypatch.setattr(warm, "LIFETIME", -1)
    with open(directory / kept) as opened:
        warm._forget(str(directory))
        assert "exec" in opened.read()  # by a shell that is in the middle of it
    assert os.stat(directory / kept).st_size == 0
    assert node.job() == "Python\n"
    warm._forget(str(directory))
    assert node.kept == []


def test_directories_of_others_are_not_looked_into(node: Node) -> None:
    node.remember()
    directory = node.path / f"udi-front-{os.geteuid()}"
    elsewhere = node.path / "elsewhere"
    directory.rename(elsewhere)
    directory.symlink_to(elsewhere)
    assert node.job() == "Python\n"
    directory.unlink()
    elsewhere.rename(directory)
    assert node.job() == "word\n"
    if os.geteuid() == 0:
        os.chown(directory, 5, 5)
        assert node.job() == "Python\n"
        os.chown(directory, 0, 0)
        for name in node.kept:
            os.chown(directory / name, 5, 5)
        assert node.job() == "Python\n"
