"""Docker's auth file and credential helpers."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from udi_core.credentials import Credential, Credentials
from udi_core.errors import ConfigError


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path / "docker")}


def write(environ: dict[str, str], document: object) -> Path:
    path = Path(environ["DOCKER_CONFIG"], "config.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def encoded(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_the_closest_entry_wins(environ: dict[str, str]) -> None:
    write(environ, {"auths": {"ghcr.io": encoded("all:1"), "ghcr.io/lab": encoded("lab:2")}})
    found = Credentials(environ=environ)
    assert found.find("ghcr.io", "lab/tool") == Credential(username="lab", password="2")
    assert found.find("ghcr.io", "other/tool") == Credential(username="all", password="1")
    assert found.find("quay.io") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub_has_many_names(environ: dict[str, str], key: str) -> None:
    write(environ, {"auths": {key: encoded("me:with:colon\0\0")}})
    assert Credentials(environ=environ).find("docker.io") == Credential(username="me", password="with:colon")


def test_environment_is_for_the_registry_and_no_mirror(environ: dict[str, str]) -> None:
    found = Credentials(environ={**environ, "UDI_USERNAME": "me", "UDI_PASSWORD": "secret"})
    assert found.find("ghcr.io") == Credential(username="me", password="secret")
    assert found.find("mirror.example", mirror=True) is None


def test_save_and_erase_keep_the_rest_of_the_file(environ: dict[str, str]) -> None:
    path = write(environ, {"auths": {"quay.io": encoded("a:b")}, "HttpHeaders": {"X": "y"}})
    credentials = Credentials(environ=environ)
    credentials.save("ghcr.io", Credential(username="me", password="secret"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert credentials.find("ghcr.io") == Credential(username="me", password="secret")
    assert credentials.erase("ghcr.io") and not credentials.erase("ghcr.io")
    assert json.loads(path.read_text()) == {"auths": {"quay.io": encoded("a:b")}, "HttpHeaders": {"X": "y"}}
    assert os.listdir(path.parent) == ["config.json"]


HELPER = """#!/bin/sh
# Keeps one secret in a file; never prints what it reads.
case $1 in
  store) cat >{store} ;;
  get) read key; [ -e {store} ] && grep -q "$key" {store} && cat {store} || {{ echo credentials not found; exit 1; }} ;;
  erase) rm -f {store} ;;
esac
"""


@pytest.fixture
def helper(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    store, program = tmp_path / "secret", tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir()
    program.write_text(HELPER.format(store=store))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    write(environ, {"credHelpers": {"ghcr.io": "test"}})
    return store


def test_a_helper_keeps_the_secret_and_the_file_does_not(environ: dict[str, str], helper: Path) -> None:
    credentials = Credentials(environ=environ)
    assert credentials.find("ghcr.io") is None
    assert credentials.save("ghcr.io", Credential(username="me", password="secret")) == "docker-credential-test"
    assert credentials.find("ghcr.io") == Credential(username="me", password="secret")
    assert "secret" not in Path(environ["DOCKER_CONFIG"], "config.json").read_text()
    assert credentials.erase("ghcr.io") and not helper.exists()


def test_a_helper_that_fails_is_an_excuse_and_no_end(environ: dict[str, str]) -> None:
    write(environ, {"credsStore": "nosuchhelper", "auths": {"ghcr.io": encoded("me:secret")}})
    credentials = Credentials(environ=environ)
    assert credentials.find("ghcr.io") == Credential(username="me", password="secret")
    assert "nosuchhelper" in credentials.excuses[0]


@pytest.mark.parametrize("document", ["{", "[]", {"auths": {"ghcr.io": {"auth": "!!!"}}}])
def test_a_malformed_file_is_named_and_never_quoted(environ: dict[str, str], document: object) -> None:
    path = write(environ, document)
    with pytest.raises(ConfigError) as caught:
        Credentials(environ=environ).find("ghcr.io")
    assert str(path) in str(caught.value) and "!!!" not in str(caught.value)


def test_no_secret_is_shown(environ: dict[str, str]) -> None:
    assert "hunter2" not in repr(Credential(username="me", password="hunter2", identity_token="hunter2"))
