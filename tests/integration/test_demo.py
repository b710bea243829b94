"""``make demo``: its three ways, and how it fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import images
from tests.support.registry import Registry

CLONE = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry", "apt-get", "dpkg-deb")


def demo(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the demo as make does; it must leave nothing in the temporary directory."""
    with tempfile.TemporaryDirectory(prefix="udi-test-", dir="/tmp") as temporary:
        done = subprocess.run(
            [sys.executable, "-m", "demo", *arguments],
            cwd=CLONE,
            env={**os.environ, "TMPDIR": temporary, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert os.listdir(temporary) == []
    return done


def results(table: str) -> dict[str, str]:
    """Step -> result, from the table at the end."""
    rows = re.findall(r"^│ (.*?) +│ +[\d.]+ │ (.*?) +│$", table, flags=re.MULTILINE)
    return dict(rows)


@pytest.mark.slow
def test_demo_runs_everything_in_an_image_of_its_own() -> None:
    done = demo()
    assert done.returncode == 0, done.stderr
    shown = results(done.stdout)
    assert shown["udi run: a plain command"] == "Debian GNU/Linux 13 (trixie)"
    assert shown["a Parsl app with @image"].startswith("Debian GNU/Linux 13 (trixie), Python 3.13.")
    assert shown["a Snakemake rule with container:"] == "Debian GNU/Linux 13 (trixie)"
    assert shown["udi node clean: leave nothing behind"] == "no mount, no process"


@pytest.mark.slow
def test_demo_takes_a_public_image_by_a_mirror_even_without_python(registry: Registry, tmp_path: Path) -> None:
    registry.push(images.image("nopython"), "library/debian", "12-slim")
    config = tmp_path / "config.yaml"
    config.write_text(f"mirrors: {{docker.io: http://{registry.host}}}\n")
    done = demo("docker:debian:12-slim", UDI_CONFIG=str(config))
    assert done.returncode == 0, done.stderr
    shown = results(done.stdout)
    assert shown["udi node clean: leave nothing behind"] == "no mount, no process"
    assert shown["a Parsl app with @image"] == "Debian GNU/Linux 12 (bookworm)"
    assert "make an image from Debian packages" not in shown


@pytest.mark.parametrize(
    ("image", "status", "said"),
    [
        ("docker:127.0.0.1:1/no/registry:1", 69, "cannot be reached"),
        ("docker:team/UPPER", 2, "UPPER"),
    ],
)
def test_demo_fails_with_the_reason_and_the_status_of_the_error(image: str, status: int, said: str) -> None:
    done = demo(image)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_names_a_missing_program() -> None:
    done = demo(UDI_TOOL_DOCKER_REGISTRY="/nonexistent")
    assert done.returncode == 69
    assert "docker-registry is not installed" in done.stderr
    assert "apt-get install docker-registry" in done.stderr
