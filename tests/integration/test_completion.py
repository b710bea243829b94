"""Completions as a person gets them: typed into the real shells, with a key to press."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.fakes.faulty_registry import faulty_registry
from tests.support import oci
from tests.support.command import udi_here

pytestmark = pytest.mark.needs("tar2sqfs", "awk")

DEADLINE = 200.0
TAB, SHOW, CLEAR = "\t", "\x14", "\x15"  # ^T is bound to what writes the line down, ^U empties it
BASH = """
PS1="ready: "
source "$SCRIPT"
bind -x '"\\C-t": printf "%s\\n" "$READLINE_LINE" >>"$LINES_FILE"'
"""
ZSH = """
PS1="ready: " LISTMAX=10000
autoload -Uz compinit && compinit -u -D
source "$SCRIPT"
write-down() { print -r -- "$BUFFER" >>"$LINES_FILE" }
zle -N write-down
bindkey -e
bindkey '^T' write-down
"""


@pytest.fixture
def shell_env(udi_env: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """With an image in the store, whose reference is in ``REFERENCE``; it has colons."""
    (tmp_path / "only-this-file").touch()
    with faulty_registry(tmp_path / "served") as registry:
        registry.layout.add_image([oci.Layer.of(oci.file("x", "x"))])
        assert udi_here("pull", registry.reference(), env=udi_env).returncode == 0
        reference = registry.reference().removeprefix("docker:")
    yield {
        **udi_env,
        "REFERENCE": reference,
        "SCRIPT": str(tmp_path / "script"),
        "LINES_FILE": str(tmp_path / "lines"),
        "FILES": str(tmp_path),
        "TERM": "dumb",
        "INPUTRC": "/dev/null",
        "LC_ALL": "C.UTF-8",
    }


def cases(env: dict[str, str]) -> dict[str, str]:
    """What is typed before the key is pressed, and the word that must come of it."""
    reference = env["REFERENCE"]
    return {
        "udi pu": "pull",
        "udi pull --pl": "--platform",
        "udi node w": "warm",
        "udi node warm --ho": "--hold",
        "udi config s": "show",
        "udi completion f": "fish",
        f"udi verify {reference[:5]}": reference,
        f"udi run --no-pull {reference[:-3]}": reference,
        f"udi node warm {reference.partition('/')[0]}": reference,
        f"udi run -V {env['FILES']}/only-t": f"{env['FILES']}/only-this-file",
        f"udi run {reference} -- cat {env['FILES']}/only-t": f"{env['FILES']}/only-this-file",
    }


def write_script(shell: str, env: dict[str, str]) -> None:
    done = udi_here("completion", shell, env=env)
    assert done.returncode == 0, done.stderr
    Path(env["SCRIPT"]).write_text(done.stdout)


def type_into(argv: Sequence[str], typed: Sequence[str], env: dict[str, str]) -> list[str]:
    """Start a shell on a terminal of its own, type lines with a tab behind each; what each line became."""
    lines = Path(env["LINES_FILE"])
    lines.touch()
    ours, its = pty.openpty()
    shell = subprocess.Popen(argv, stdin=its, stdout=its, stderr=its, env=env, start_new_session=True)
    os.close(its)
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                return  # EIO: the shell has ended
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def wait(come: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not come():
            assert time.monotonic() < end, shown.decode(errors="replace")[-2000:]
            time.sleep(0.02)

    try:
        # Before it shows its prompt, the terminal itself would make something of our keys.
        wait(lambda: b"ready: " in shown)
        for number, text in enumerate(typed, 1):
            os.write(ours, f"{text}{TAB}{SHOW}{CLEAR}".encode())
            wait(lambda number=number: len(lines.read_text().splitlines()) >= number)  # type: ignore[misc]
        return lines.read_text().splitlines()
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
        reader.join(5)


@pytest.mark.parametrize(
    ("shell", "setup"),
    [pytest.param(*each, marks=pytest.mark.needs(each[0]), id=each[0]) for each in (("bash", BASH), ("zsh", ZSH))],
)
def test_what_a_tab_makes_of_a_line(shell: str, setup: str, shell_env: dict[str, str]) -> None:
    write_script(shell, shell_env)
    directory = Path(shell_env["FILES"])
    (directory / ".zshrc").write_text(setup)
    argv = {"bash": ["bash", "--noprofile", "--rcfile", str(directory / ".zshrc"), "-i"], "zsh": ["zsh", "-d", "-i"]}
    wanted = cases(shell_env)
    found = type_into(argv[shell], list(wanted), {**shell_env, "ZDOTDIR": str(directory)})
    for (typed, word), line in zip(wanted.items(), found, strict=True):
        assert line.rstrip() == f"{typed.rpartition(' ')[0]} {word}"


@pytest.mark.needs("fish")
def test_what_fish_offers(shell_env: dict[str, str]) -> None:
    write_script("fish", shell_env)
    wanted = cases(shell_env)
    commands = [f"source {shell_env['SCRIPT']}"]
    for typed in wanted:
        commands += [f"complete -C '{typed}'", "echo ======"]
    argv = ["fish", "--no-config", "-c", "\n".join(commands)]
    done = subprocess.run(argv, env=shell_env, capture_output=True, text=True, timeout=DEADLINE)
    assert done.stderr == ""
    offers = [each.strip().splitlines() for each in done.stdout.split("======\n")]
    for (typed, word), offered in zip(wanted.items(), offers, strict=False):
        assert [each.partition("\t")[0] for each in offered] == [word], typed


def test_every_command_and_option_is_offered(udi_env: dict[str, str]) -> None:
    from udi_core.cli import completion, parser

    commands = {**parser.COMMANDS, **parser.plugins()}
    found = {each.path: each for each in completion.words(commands)}
    assert set(commands) <= set(found) and "kernel install" in found
    assert found["run"].references and "--volume" in found["run"].valued and "--no-pull" not in found["run"].valued
    for shell in ("bash", "zsh", "fish"):
        script = udi_here("completion", shell, env=udi_env).stdout
        assert all(name in script for name in commands)
