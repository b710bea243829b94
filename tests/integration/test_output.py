"""What commands print: JSON as documented, bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.faulty_registry import FaultyRegistry, faulty_registry
from tests.support import oci
from tests.support.command import three_parts, udi, udi_here

pytestmark = pytest.mark.needs("tar2sqfs")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FaultyRegistry]:
    with faulty_registry(tmp_path / "served") as registry:
        registry.layout.add_image([oci.Layer.of(oci.file("data", os.urandom(3_000_000)))])
        yield registry


def documented(name: str) -> set[str]:
    """The keys that the manual's table has for a command."""
    row = re.search(rf"^\| [^|]*{name}[^|]*\| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert row, name
    return set(re.findall(r"`([a-z_0-9]+)`", row[1])) - {"pull"}


@pytest.mark.needs("bwrap")
def test_json_documents_are_as_documented(tiny_image: str, udi_env: dict[str, str]) -> None:
    def document(*argv: str) -> Any:
        done = udi_here(*argv, "--json", env=udi_env)
        return json.loads(done.stdout)

    image = document("pull", tiny_image)
    assert set(image) == set(document("inspect", tiny_image)) == documented("`inspect`")
    (listed,) = document("images")
    assert set(listed) == {*image, "tags"} and documented("`images`") == {"tags"}
    assert set(document("gc", "--dry-run")) == documented("`gc`")
    assert udi("node", "warm", tiny_image, env=udi_env).returncode == 0
    assert set(document("node", "status")[0]) == documented("`node status`")
    settings = document("config", "show")
    assert all(set(each) == documented("`config show`") for each in settings.values())
    found = document("doctor")
    assert {*found, *found["findings"][0], "ok", "note", "missing"} == documented("`doctor`")
    failed = document("pull", "team/UPPER")
    assert {*failed, *failed["error"]} == documented("any that fails")


def test_plain_lines_where_there_is_no_terminal(served: FaultyRegistry, udi_env: dict[str, str]) -> None:
    done = udi("pull", served.reference(), env=udi_env)
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stderr
    assert all(line.startswith("udi: ") for line in done.stderr.splitlines())
    assert "Downloading" in done.stderr and "100 % of 3.0 MB" in done.stderr
    quiet = udi("pull", "--quiet", served.reference(), env=udi_env)
    assert quiet.stderr == "" and re.fullmatch(r"[0-9a-f]{64}\n", quiet.stdout)


def on_terminal(argv: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Run ``udi`` with both outputs on a terminal; its status, and what the terminal got."""
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "udi_core", *argv], stdin=subprocess.DEVNULL, stdout=its, stderr=its, env=env
    ) as program:
        os.close(its)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: nobody has the other end any more
                break
            if not data:
                break
            shown += data
        os.close(ours)
        return program.wait(60), shown.decode()


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|9\d|1)(?:;\d+)*m")


def test_bars_and_colours_on_a_terminal(served: FaultyRegistry, udi_env: dict[str, str]) -> None:
    env = {key: value for key, value in udi_env.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "COLUMNS": "120"}
    for argv in (["pull", served.reference()], ["pull", served.reference("nosuch")], ["doctor"]):
        _, shown = on_terminal(argv, env)
        assert COLOUR.search(shown), argv
        _, plain = on_terminal([*argv, *(["--force"] if argv[0] == "pull" else [])], {**env, "NO_COLOR": "1"})
        assert plain and not COLOUR.search(plain), argv
    status, shown = on_terminal(["pull", "--force", served.reference()], env)
    assert status == 0 and "Downloading" in shown and "━" in shown


def test_every_setting_says_where_it_came_from(udi_env: dict[str, str], tmp_path: Path) -> None:
    site, user = tmp_path / "site.yaml", tmp_path / "user.yaml"
    site.write_text("env: {A: site}\nidle: 5\npolicy: {registries: [docker.io]}\n")
    user.write_text("env: {B: user}\nidle: 6\n")
    env = {**udi_env, "UDI_CONFIG": str(user), "UDI_SITE_CONFIG": str(site), "UDI_BACKENDS": "extract"}
    shown = json.loads(udi_here("config", "show", "--json", env=env).stdout)
    assert shown["env"] == {"value": {"A": "site", "B": "user"}, "origin": f"{site} and {user}"}
    assert shown["idle"] == {"value": 6.0, "origin": str(user)}
    assert shown["policy"]["origin"] == str(site) and shown["backends"]["origin"] == "UDI_BACKENDS"
    assert shown["ca_file"]["origin"] == "default"
    text = udi_here("config", "show", env=env).stdout
    assert all(name in text for name in shown)
    assert ["memory", "default", "48M"] in [line.split() for line in text.splitlines()]


def test_doctor_goes_on_where_a_directory_is_of_no_use(udi_env: dict[str, str]) -> None:
    Path(udi_env["UDI_NODE_DIR"]).mkdir()
    Path(udi_env["UDI_NODE_DIR"]).chmod(0o777)
    done = udi_here("doctor", "--json", env=udi_env)
    assert done.returncode == 1
    findings = {each["what"]: each for each in json.loads(done.stdout)["findings"]}
    assert "mode is 0777" in findings["node directory"]["found"] and "chmod 0700" in findings["node directory"]["hint"]
    assert findings["mounts"]["level"] == "missing" and findings["store"]["level"] in ("ok", "note")


def test_what_an_image_says_does_not_command_the_terminal(udi_env: dict[str, str], tmp_path: Path) -> None:
    layout = oci.Layout(tmp_path / os.fsdecode(b"odd\xff [/b]"))
    labels = {"a\x1b]0;title\x07": "\x1b[31mred\u202e"}
    layout.add_image([oci.Layer.of(oci.file("x", "x"))], config={"Labels": labels}, tag="a")
    layout.add_image([oci.Layer.of(oci.file("x", "x"))], tag="\x1b[2J")
    env = {**udi_env, "PYTHONIOENCODING": "utf-8:strict"}
    for argv in (["pull", f"oci:{layout.path}:a"], ["images"], ["inspect", f"oci:{layout.path}:a"]):
        done = udi(*argv, env=env)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout and "\x07" not in done.stdout and "\u202e" not in done.stdout
    assert "\\x1b[31mred" in done.stdout
    assert "\x1b" not in udi("pull", f"oci:{layout.path}:nosuch", env=env).stderr
    status, _ = on_terminal(["pull", "--force", f"oci:{layout.path}:a"], {**env, "TERM": "xterm"})
    assert status == 0


def test_nobody_says_who_he_is(udi_env: dict[str, str]) -> None:
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "udi_core", "login", "ghcr.io"],
        stdin=its,
        stdout=its,
        stderr=subprocess.PIPE,
        env=udi_env,
        start_new_session=True,
    ) as program:
        os.close(its)
        os.write(ours, b"\x04")
        _, said = program.communicate(timeout=120)
        os.close(ours)
    assert program.returncode == 2 and b"password are needed" in said


def test_doctor_names_what_must_be_mended(udi_env: dict[str, str], tmp_path: Path) -> None:
    auth = tmp_path / "auth.json"
    auth.write_text("{")
    broken = {"UDI_TOOL_BWRAP": "/nowhere", "UDI_CA_FILE": "/no/ca.pem", "REGISTRY_AUTH_FILE": str(auth)}
    done = udi_here("doctor", "--json", env={**udi_env, **broken})
    assert done.returncode == 1, done.stdout
    assert not any(os.path.lexists(udi_env[name]) for name in ("UDI_STORE", "UDI_NODE_DIR")), "it only looks"
    missing = {each["what"]: each for each in json.loads(done.stdout)["findings"] if each["level"] == "missing"}
    assert {"bwrap", "sandbox", "CA file", "passwords"} <= set(missing)
    assert "apt-get install bubblewrap" in missing["bwrap"]["hint"] and "UDI_CA_FILE" in missing["CA file"]["hint"]


def test_arguments_that_make_no_sense(udi_env: dict[str, str]) -> None:
    for argv, said in (
        (["gc", "--grace", "nan"], "number of seconds"),
        (["gc", "--grace", "-1"], "number of seconds"),
        (["gc", "--grace", "soon"], "number of seconds"),
        (["help", "nosuch"], "no command 'nosuch'"),
        (["node", "clean", "--job", "mine"], "no job's id"),
        (["pull", "x/" + "a" * 300], "255 characters"),
        (["login", "-u", "me", "--password-stdin", "no registry"], "not a registry"),
        (["logout", "ghcr"], "not a registry"),
        (["logout", "ghcr.io/team"], "not a registry"),
        (["pull", "--platform", "amd64", "x"], "linux/amd64/v3"),
        (["node"], "VERB"),
        (["completion", "tcsh"], "choose from"),
    ):
        three_parts(udi_here(*argv, env=udi_env), 2, said)


def test_help_of_every_command(udi_env: dict[str, str]) -> None:
    done = udi("help", "pull", env=udi_env)
    assert done.returncode == 0 and "--platform" in done.stdout
    listed = udi("--help", env=udi_env).stdout
    assert all(name in listed for name in ("pull", "kernel", "prefetch", "docs/exit-codes.md"))
