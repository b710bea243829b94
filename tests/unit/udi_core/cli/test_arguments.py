"""Reading the words behind ``udi run`` by hand: as argparse would, where argparse is right."""

from __future__ import annotations

import pytest

from udi_core.cli.arguments import OPTIONS, read
from udi_core.cli.parser import COMMANDS, Parser

LINES = [
    "REF",
    "REF true",
    "REF -x --volume",
    "-V /a:/b -V/c --volume=/d:/e:ro --volume /f REF x",
    "-e A=1 -eB=2 -e=C=3 --env=D=x=y --env E REF",
    "--env-file f --env-file=g --clearenv --no-pull REF",
    "-w /x --platform linux/arm64 REF x",
    "-w=/x --platform= REF",
    "--workdir - REF",
    "--entrypoint=sh REF -c x",
]


@pytest.mark.parametrize("line", LINES)
def test_as_argparse_reads_it(line: str) -> None:
    parser = Parser()
    COMMANDS["run"].arguments(parser)
    expected = vars(parser.parse_args(line.split()))
    found = read("run", line.split())
    assert found is not None and vars(found) == expected


@pytest.mark.parametrize(
    ("line", "command"),
    [("REF -- true -x --y", ["true", "-x", "--y"]), ("REF -- -- x", ["--", "x"]), ("-- REF x", ["x"]), ("REF --", [])],
)
def test_the_first_double_dash_is_ours(line: str, command: list[str]) -> None:
    found = read("run", line.split())
    assert found is not None and found.reference == "REF" and found.command == command


def test_a_bare_entrypoint_does_not_swallow_the_reference() -> None:
    found = read("run", ["--entrypoint", "REF", "--", "-x"])
    assert found is not None
    assert (found.entrypoint, found.reference, found.command) == (True, "REF", ["-x"])


@pytest.mark.parametrize(
    "line",
    ["", "--help", "-h REF", "--nosuch REF", "-x", "-V", "-e", "--volume", "--clearenv=1 REF", "-w", "--", "-w -e"],
)
def test_what_argparse_must_complain_of(line: str) -> None:
    assert read("run", line.split()) is None


def test_a_shell_has_no_command_and_no_entrypoint() -> None:
    found = read("shell", ["-V", "/a", "REF"])
    assert found is not None and found.reference == "REF" and found.command == []
    assert read("shell", ["REF", "sh"]) is None
    assert read("shell", ["--entrypoint", "REF"]) is None


def test_the_help_names_every_option() -> None:
    parser = Parser()
    COMMANDS["run"].arguments(parser)
    text = parser.format_help()
    assert all(name in text for option in OPTIONS for name in option.names)
