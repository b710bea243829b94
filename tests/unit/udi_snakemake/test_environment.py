"""The environment of a program in an image: apptainer's rules, as text."""

from __future__ import annotations

import pytest
from udi_snakemake.arguments import Action, Bind
from udi_snakemake.environment import DEFAULT_PATH, build, injected, parse_env_file

from udi_core.errors import UsageError

IMAGE = {"PATH": "/opt/tool/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "64"}


def env(host: dict[str, str], *, image: dict[str, str] | None = None, **fields: object) -> dict[str, str]:
    action = Action(verb="exec", image="i", **fields)  # type: ignore[arg-type]
    return build(action, host, IMAGE if image is None else image, name="/p/0f.simg", home="/w").env


def test_the_host_wins_except_for_the_search_paths_and_home() -> None:
    host = {"PATH": "/host", "LD_LIBRARY_PATH": "/hostlib", "HOME": "/root", "OMP_NUM_THREADS": "2", "MINE": "1"}
    seen = env(host)
    assert seen["OMP_NUM_THREADS"] == "2"
    assert seen["LANG"] == "C.UTF-8"
    assert seen["PATH"] == IMAGE["PATH"]
    assert seen["LD_LIBRARY_PATH"] == "/.singularity.d/libs"
    assert seen["HOME"] == "/w"
    assert "MINE" not in seen  # it passes by itself, as nothing is cleared


def test_an_image_without_path_or_with_libraries() -> None:
    assert env({}, image={})["PATH"] == DEFAULT_PATH
    assert env({}, image={"LD_LIBRARY_PATH": "/l"})["LD_LIBRARY_PATH"] == "/l:/.singularity.d/libs"


def test_what_the_image_can_ask() -> None:
    seen = env({}, binds=(Bind(source="/a", target="/b"),))
    for prefix in ("APPTAINER", "SINGULARITY"):
        assert seen[f"{prefix}_CONTAINER"] == "/p/0f.simg"
        assert seen[f"{prefix}_NAME"] == "0f.simg"
        assert seen[f"{prefix}_COMMAND"] == "exec"
        assert seen[f"{prefix}_BIND"] == "/a:/b"


def test_a_clean_environment_keeps_terminal_and_proxies_only() -> None:
    host = {"TERM": "xterm", "https_proxy": "http://p:1", "MINE": "1", "LANG": "de_DE.UTF-8", "APPTAINERENV_X": "2"}
    action = Action(verb="exec", image="i", cleanenv=True)
    built = build(action, host, IMAGE, name="i", home="/w")
    assert built.clear
    assert built.env["TERM"] == "xterm"
    assert built.env["https_proxy"] == "http://p:1"
    assert built.env["LANG"] == "C"
    assert built.env["X"] == "2"
    assert built.env["OMP_NUM_THREADS"] == "64"
    assert "MINE" not in built.env


def test_precedence_of_what_was_asked_for() -> None:
    host = {"SINGULARITYENV_A": "s", "APPTAINERENV_A": "a", "SINGULARITYENV_B": "s", "APPTAINERENV_C": "a"}
    action = Action(verb="exec", image="i", env={"C": "flag"})
    seen = build(action, host, {"B": "image"}, name="i", home="/w", env_file={"A": "file", "D": "file"}).env
    assert (seen["A"], seen["B"], seen["C"], seen["D"]) == ("a", "s", "flag", "file")


def test_path_edits() -> None:
    seen = env({"APPTAINERENV_PREPEND_PATH": "/first", "SINGULARITYENV_APPEND_PATH": "/last"})
    assert seen["PATH"] == "/first:/opt/tool/bin:/bin:/last"
    assert "PREPEND_PATH" not in seen
    assert env({"APPTAINERENV_PATH": "/only"})["PATH"] == "/only"


def test_injected_needs_a_name() -> None:
    assert injected({"APPTAINERENV_": "x", "APPTAINERENV": "y", "SINGULARITYENV_CONDA_PKGS_DIRS": "/tmp/c"}) == {
        "CONDA_PKGS_DIRS": "/tmp/c"
    }


def test_env_file() -> None:
    text = "# comment\n\nA=1\nexport B='two words'\nC=\"x\"\nD=a=b\nE=\n"
    assert parse_env_file(text, "f") == {"A": "1", "B": "two words", "C": "x", "D": "a=b", "E": ""}


@pytest.mark.parametrize("line", ["source other.sh", "1A=x", "=x"])
def test_malformed_env_file(line: str) -> None:
    with pytest.raises(UsageError, match="line 2"):
        parse_env_file(f"A=1\n{line}\n", "f")
