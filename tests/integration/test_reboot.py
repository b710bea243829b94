"""A node that crashes and boots again, on which nothing but the files in its node directory is left.

A boot is a PID namespace with a mount namespace and a boot id of its own.  When its first process is killed, the kernel
ends all others and takes all mounts away, as when the power fails; and the next one counts process ids from 1 again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import tools, user
from tests.support.cluster import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("bwrap", "unshare", "nsenter", "setpriv")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """A running node: ``enter`` is the argv in front of a program on it."""

    enter: Sequence[str]
    env: Mapping[str, str]

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self.enter, *argv], env=self.env, cwd="/", stdout=subprocess.PIPE, text=True)

    def run(self, *argv: str) -> str:
        done = subprocess.run([*self.enter, *argv], env=self.env, cwd="/", capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def boot(directory: Path, prefix: Sequence[str], env: Mapping[str, str]) -> Iterator[Boot]:
    identity = directory / "boot_id"
    identity.write_text(f"{uuid.uuid4()}\n")
    script = 'mount --bind "$1" /proc/sys/kernel/random/boot_id && echo up && exec sleep infinity'
    flags = ["--mount", "--propagation=private", "--pid", "--fork", "--mount-proc", "--kill-child"]
    argv = ["unshare", *flags, "sh", "-c", script, "sh", str(identity)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield Boot(enter=["nsenter", f"--target={first}", "--mount", "--pid", "--wd=/", "--", *prefix], env=env)
        finally:
            process.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{first}"), "end of all processes")


@pytest.fixture(params=["kernel", "fuse", "namespace"])
def backend(request: pytest.FixtureRequest) -> str:
    """Root's way of mounting, and those of an ordinary user."""
    if request.param != "kernel":
        tools.need(("squashfuse_ll", "fusermount3"))
    return str(request.param)


def test_a_node_that_crashed_works_at_once(backend: str, tiny_image: str, request: pytest.FixtureRequest) -> None:
    who: user.OrdinaryUser | None = None if backend == "kernel" else request.getfixturevalue("ordinary_user")
    directory = Path(tempfile.mkdtemp(prefix="udi-test-"))
    directory.chmod(0o1777)
    node = directory / "node"
    env = {
        **(who.env if who else os.environ),
        "UDI_STORE": f"{directory}/store",
        "UDI_NODE_DIR": str(node),
        "UDI_RECORD_DIR": f"{directory}/records",
        "UDI_BACKENDS": backend,
        "UDI_SITE_CONFIG": "/nonexistent",
        "UDI_CONFIG": "/nonexistent",
    }
    python = who.python if who else sys.executable
    udi = (python, "-m", "udi_core")
    try:
        with boot(directory, who.prefix if who else (), env) as first:
            first.run(*udi, "node", "warm", "--hold", "--job=77", tiny_image)
            task = first.start(*udi, "run", tiny_image, "--", "sh", "-c", "echo inside; sleep 600")
            calls = first.start(
                python,
                "-c",
                "import sys, time; from udi_core import temporary;"
                "print(*temporary.make(sys.argv[1]), flush=True); time.sleep(600)",
                str(node),
            )
            for process, said in ((task, "inside\n"), (calls, f"{node}/tmp/")):
                assert process.stdout is not None
                assert process.stdout.readline().startswith(said)
            (mount,) = json.loads(first.run(*udi, "node", "status", "--json"))
            assert (mount["backend"], mount["held_by"]) == (backend, ["77"])
        for process in (task, calls):
            assert process.wait(60) != 0
            process.communicate()
        assert not user.mounts_below(directory)
        (state,) = node.glob("mounts/*/*/state.json")
        assert {"holds", "mounts", "record.jsonl", "tmp"} <= set(os.listdir(node))

        with boot(directory, who.prefix if who else (), env) as second:
            assert json.loads(second.run(*udi, "node", "status", "--json")) == []
            # The server's process id, and by an odd chance its start too, are those of a stranger.
            stranger = second.start("sh", "-c", "echo $$ $(cut -d' ' -f22 /proc/$$/stat); exec sleep 600")
            assert stranger.stdout is not None
            pid, started = map(int, stranger.stdout.readline().split())
            if backend != "kernel":
                state.write_text(json.dumps({**json.loads(state.read_text()), "pid": pid, "started": started}))
            assert second.run(*udi, "run", "--no-pull", tiny_image, "--", "echo", "back") == "back\n"
            (mount,) = json.loads(second.run(*udi, "node", "status", "--json"))
            assert (mount["backend"], mount["held_by"]) == (backend, [])
            assert stranger.poll() is None
            second.run(*udi, "node", "clean")
            assert not node.exists()
            lines = [json.loads(line) for path in (directory / "records").iterdir() for line in path.open()]
            assert [line["by"] for line in lines] == ["pull", "mount", "run", "mount", "run"]
        stranger.communicate()
    finally:
        user.clean_up(directory)
