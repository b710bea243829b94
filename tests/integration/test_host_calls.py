"""Programs of the node called from a real image: streams, status, signals, and who may call."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import images
from udi_core import Host, HostCalls, ImageStore, LaunchError, LaunchSpec, NodeMounts, find, load_config, spawn
from udi_core.host_calls import DIRECTORY
from udi_core.policy import Policy

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "apt-get")

PROBE = f"""#!{sys.executable}
import json, os, signal, sys
if sys.argv[1:] == ["wait"]:
    def stop(number, frame):
        print("got", signal.Signals(number).name, flush=True)
        sys.exit(5)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    print("ready", os.getpid(), flush=True)
    while True:
        signal.pause()
if sys.argv[1:] == ["die"]:
    os.kill(os.getpid(), signal.SIGUSR2)
print(json.dumps([sys.argv[1:], os.getcwd(), sys.stdin.read(), dict(os.environ), os.path.exists("/.udi")]))
print("complaint", file=sys.stderr)
sys.exit(3)
"""


@dataclass(frozen=True)
class Bridge:
    """An image of which tasks may call ``probe``."""

    calls: HostCalls
    start: Callable[..., subprocess.Popen[bytes]]
    directory: str

    def run(self, *command: str, **options: Any) -> tuple[int, str, str]:
        process = self.start(*command, **options)
        out, err = process.communicate(options.get("input"), timeout=120)
        return process.returncode, out.decode(), err.decode()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(params=["base"])
def bridge(request: pytest.FixtureRequest, udi_env: dict[str, str], store: str, tmp_path: Path) -> Iterator[Bridge]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "probe").write_text(PROBE)
    (tmp_path / "bin" / "probe").chmod(0o755)
    environ = {**udi_env, "UDI_STORE": store, "PATH": f"{tmp_path}/bin:{udi_env['PATH']}", "OF_NODE": "yes"}
    config = replace(load_config(environ), policy=Policy(host_programs=("probe", "absent")))
    image = find(f"oci:{images.image(request.param).path}:latest", config)
    work = tmp_path / "work"
    work.mkdir()
    with (
        NodeMounts(config, ImageStore(config.store)).mount(image) as mounted,
        HostCalls(config, environ=environ, cwd=str(tmp_path)) as calls,
    ):

        def start(*command: str, **_: Any) -> subprocess.Popen[bytes]:
            spec = LaunchSpec(command=command, environ=environ, cwd=str(work))
            launch = calls.build(spec, mounted, config, Host.observe(mounted, environ=environ, cwd=spec.cwd))
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            return spawn(launch.argv, env=launch.env, pass_fds=launch.pass_fds, **streams)

        yield Bridge(calls=calls, start=start, directory=calls._directory)
        directory = calls._directory
    assert not os.path.exists(directory)


def test_streams_status_directory_and_changed_variables(bridge: Bridge, tmp_path: Path) -> None:
    script = "export SEED=3; unset OF_NODE; probe 'a  b' \"$(printf '\\377')\"; echo status $?"
    status, out, err = bridge.run("bash", "-c", script, input=b"from outside")
    answer, last = out.splitlines()
    argv, cwd, given, env, in_image = json.loads(answer)
    assert (status, last, err) == (0, "status 3", "complaint\n")
    assert (argv, cwd, given, in_image) == (["a  b", "\udcff"], str(tmp_path / "work"), "from outside", False)
    assert env["SEED"] == "3" and "OF_NODE" not in env and env["PATH"].startswith(str(tmp_path))
    assert "IMAGE_NAME" not in env


def test_a_directory_of_the_image_only_is_told(bridge: Bridge, tmp_path: Path) -> None:
    status, out, err = bridge.run("bash", "-c", f"cd {DIRECTORY} && probe < /dev/null")
    assert status == 3 and json.loads(out)[1] == str(tmp_path)
    assert f"{DIRECTORY} is a directory of the image only" in err


def test_pipes_and_closed_streams(bridge: Bridge) -> None:
    assert bridge.run("bash", "-c", "echo x | probe | tail -c 7")[1] == "false]\n"
    assert bridge.run("bash", "-c", "probe <&- >&- 2>&-")[0] == 3


def test_many_calls_at_once(bridge: Bridge, tmp_path: Path) -> None:
    bridge.run("bash", "-c", "for i in {1..12}; do probe $i < /dev/null > $i.json & done; wait")
    assert [json.loads((tmp_path / "work" / f"{i}.json").read_text())[0] for i in range(1, 13)] == [
        [str(i)] for i in range(1, 13)
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_go_in_and_the_status_comes_back(bridge: Bridge, number: signal.Signals) -> None:
    process, caller, _ = waiting(bridge)
    os.kill(caller, number)
    out, _ = process.communicate(timeout=120)
    assert out.decode() == f"got {number.name}\n"
    assert process.returncode == 5


def test_a_program_that_a_signal_ended(bridge: Bridge) -> None:
    assert bridge.run("bash", "-c", "probe die; echo $?")[1] == f"{128 + signal.SIGUSR2}\n"


def test_a_program_ends_with_its_caller_and_with_the_bridge(bridge: Bridge) -> None:
    first, caller, program = waiting(bridge)
    os.kill(caller, signal.SIGKILL)
    first.communicate(timeout=120)
    wait_gone(program)
    second, _, program = waiting(bridge)
    bridge.calls.close()
    wait_gone(program)
    second.communicate(timeout=120)
    assert second.returncode == 5


def waiting(bridge: Bridge) -> tuple[subprocess.Popen[bytes], int, int]:
    """A task that has called a program which waits; the process ids of the caller and of the program."""
    process = bridge.start("bash", "-c", "echo $$; exec probe wait")
    assert process.stdout is not None
    caller, program = process.stdout.readline(), process.stdout.readline()
    return process, int(caller), int(program.split()[1])


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 120
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_not_offered_is_not_run(bridge: Bridge) -> None:
    script = f"ls {DIRECTORY}/bin; touch {DIRECTORY}/x"
    status, out, err = bridge.run("bash", "-c", script)
    assert out == "probe\n" and status == 1 and "Read-only" in err
    answer = ask(bridge, {"program": "true", "argv": [], "cwd": "/", "env": {}})
    assert answer["exit"] == 126 and "cannot be called" in answer["said"]


@pytest.mark.parametrize(
    "request_",
    [b"", b"{", b"[1]", b"[" * 100_000, b'{"program": "probe", "argv": "x", "cwd": "/", "env": {}}', b'{"argv": [3]}'],
)
def test_nonsense_is_not_answered(bridge: Bridge, request_: bytes) -> None:
    assert ask(bridge, request_) is None
    assert bridge.run("probe", input=b"")[0] == 3


def ask(bridge: Bridge, request: Any) -> Any:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection, open(os.devnull, "r+b") as null:
        connection.settimeout(120)
        connection.connect(os.path.join(bridge.directory, "socket"))
        socket.send_fds(connection, [struct.pack(">I", len(body))], [null.fileno()] * 3)
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(body)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(4096):
                answer += part
        return json.loads(answer) if answer else None


@pytest.mark.root
def test_another_user_is_not_served(bridge: Bridge, ordinary_user: Any) -> None:
    assert os.stat(bridge.directory).st_mode & 0o777 == 0o700
    for path in (bridge.directory, f"{bridge.directory}/socket", f"{bridge.directory}/bin"):
        os.chmod(path, 0o777)  # so that only the kernel's word about the caller stands in the way
    client = Path(bridge.directory, "call")
    bridge.run("true")
    text = client.read_text().partition("\n")[2]
    copy = ordinary_user.home / "probe"
    copy.write_text(text.replace("os.path.realpath(sys.argv[0])", f"{bridge.directory + '/x'!r}"))
    done = ordinary_user.run([ordinary_user.python, str(copy)], check=False)
    assert done.returncode == 125 and "does not answer" in done.stderr


@pytest.mark.parametrize("bridge", ["nopython"], indirect=True)
def test_an_image_without_python_says_so(bridge: Bridge) -> None:
    with pytest.raises(LaunchError, match="cannot call programs"):
        bridge.start("true")
