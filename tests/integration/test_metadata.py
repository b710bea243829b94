"""What starting tasks costs a shared file system, counted: next to nothing, however many tasks and files there are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import images, oci, user
from tests.support.sharedfs import TOOLS, SharedFileSystem, shared_file_system

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry", "apt-get", *TOOLS)

IMPORTS = "import asyncio, decimal, http.client, json, sqlite3"


@pytest.fixture
def shared(udi_env: dict[str, str], tmp_path: Path, base_image: str) -> Iterator[SharedFileSystem]:
    """A store on a shared file system, with an image in it; the client knows nothing of either yet."""
    backing, mountpoint = tmp_path / "backing", tmp_path / "shared"
    udi({**udi_env, "UDI_STORE": f"{backing}/store"}, "pull", "-q", base_image)
    udi_env["UDI_STORE"] = f"{mountpoint}/store"
    # Names and attributes are believed for as long as a client of Lustre holds a lock on them.
    with shared_file_system(backing, mountpoint, lifetime=3600) as mounted:
        mounted.reset()
        yield mounted
        user.clean_up(udi_env["UDI_NODE_DIR"])


def udi(env: dict[str, str], *argv: str) -> str:
    command = [sys.executable, "-m", "udi_core", *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250, cwd="/tmp")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tasks_cost_the_metadata_server_nothing(
    shared: SharedFileSystem, udi_env: dict[str, str], base_image: str
) -> None:
    def task(_: int) -> str:
        return udi(udi_env, "run", "--no-pull", base_image, "--", "python3", "-c", IMPORTS + "; print('there')")

    # Eight tasks that meet on a cold node: the first to come asks, the others wait for what it learns.
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(task, range(8))) == {"there\n"}
    assert shared.metadata() <= 50, shared.counts()
    shared.reset()
    for number in range(4):
        task(number)
    assert shared.metadata() == 0, shared.counts()


def test_a_tag_that_moved_is_seen(
    shared: SharedFileSystem, udi_env: dict[str, str], push: Callable[..., str], tmp_path: Path
) -> None:
    """What the node has copied is believed only while the original is the same file."""
    first = images.image("tiny")
    name = push(first, "test/moving")
    for expected in ("", "second\n"):
        udi(udi_env, "pull", "-q", name)
        for _ in range(2):
            said = udi(udi_env, "run", "--no-pull", name, "--", "sh", "-c", "test ! -e /second || echo second")
            assert said == expected
        second = oci.Layer.of(oci.file("second", b""))
        push(images.derive(first, tmp_path / "layout", [second]), "test/moving")
