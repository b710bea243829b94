"""Agents on every Python of this machine, from 3.6 on, without an image around them."""

from __future__ import annotations

import contextlib
import glob
import os
import pickle
import platform
import signal
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from udi_core import Agent, AgentLost, AgentPool, Launch, pack, pack_arguments, specify, unpack
from udi_core.agent import host, in_image
from udi_core.agent.host import kill_tree


def _pythons() -> list[str]:
    roots = [os.environ.get("PYENV_ROOT", ""), os.path.expanduser("~/.pyenv")]
    found = {path for root in roots if root for path in glob.glob(f"{root}/versions/3.*/bin/python3")}
    return [sys.executable, *sorted(each for each in found if os.access(each, os.X_OK))]


def start(python: str = sys.executable) -> Agent:
    return Agent(Launch(argv=(python, "-s", in_image.__file__), env=dict(os.environ), pass_fds=()))


@pytest.fixture(params=_pythons(), ids=lambda path: path.split("/")[-3])
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    with contextlib.closing(start(request.param)) as started:
        yield started


@pytest.fixture
def own() -> Iterator[Agent]:
    with contextlib.closing(start()) as started:
        yield started


def call(agent: Agent, function: Any, *args: Any) -> Any:
    answer = agent.call(specify(function), [b"", *pack((args, {}), min(5, agent.protocol))], "/")
    if answer[0] in (b"ok", b"plain"):
        return unpack(answer[1:])
    kind, described = pickle.loads(answer[0])
    return kind, described


def add(left: int, right: int) -> int:
    return left + right


def test_a_function_runs_on_every_python(agent: Agent) -> None:
    assert [call(agent, add, 1, each) for each in range(3)] == [1, 2, 3]


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def moved(point: Any, by: int) -> Any:
    return Point(point.x + by) if isinstance(point, Point) else None


def test_classes_of_the_script_on_every_python(agent: Agent) -> None:
    specification = specify(moved)
    same = agent.python == platform.python_version()  # and has cloudpickle
    parts = pack_arguments(((Point(1), 2), {}), specification, same=same, protocol=agent.protocol)
    for _ in range(2):
        answer = agent.call(specification, parts, "/")
        assert answer[0] == b"ok", pickle.loads(answer[0])[1]["traceback"]
        result = unpack(answer[1:])
        assert type(result) is Point and result.x == 3


def test_an_exception_is_described_on_every_python(agent: Agent) -> None:
    def fail() -> None:
        raise LookupError("absent")

    kind, described = call(agent, fail)
    assert kind == "error" and described["name"] == "LookupError" and "in fail" in described["traceback"]


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_001])
def test_frames_of_any_size(agent: Agent, size: int) -> None:
    def twice(data: bytes) -> bytes:
        return data + data

    data = os.urandom(size)
    assert call(agent, twice, data) == data + data


def test_large_arrays_travel_out_of_band(own: Agent) -> None:
    numpy = pytest.importorskip("numpy")

    def negated(values: Any) -> Any:
        return -values

    values = numpy.arange(1_000_000)
    parts = pack_arguments(((values,), {}), specify(negated), same=True, protocol=5)
    assert [len(part) > 1_000_000 for part in map(memoryview, parts)] == [False, False, True]
    answer = own.call(specify(negated), parts, "/")
    assert answer[0] == b"ok" and len(answer[1]) < 1000, "the array is not inside the pickle"
    assert (unpack(answer[1:]) == -values).all()


def test_large_arrays_are_copied_into_and_out_of_the_socket_and_nowhere_else(own: Agent) -> None:
    numpy = pytest.importorskip("numpy")
    size = 64 << 20

    def negate(values: Any) -> Any:
        return numpy.negative(values, out=values) if values is not None else None

    def memory() -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

    arrays, plain = specify(negate), specify(memory)
    own.call(arrays, pack_arguments(((None,), {}), arrays, same=True, protocol=5), "/")  # imports numpy
    before = unpack(own.call(plain, [b"", *pack(((), {}))], "/")[1:])
    values = numpy.ones(size // 8)
    tracemalloc.start()
    try:
        parts = pack_arguments(((values,), {}), arrays, same=True, protocol=5)
        assert tracemalloc.get_traced_memory()[1] < size / 4, "packing copies nothing"
        answer = own.call(arrays, parts, "/")
        result = unpack(answer[1:])
        assert tracemalloc.get_traced_memory()[1] < size * 1.25, "what comes back is there once"
    finally:
        tracemalloc.stop()
    assert (result == -1).all()
    after = unpack(own.call(plain, [b"", *pack(((), {}))], "/")[1:])
    assert after - before < size * 1.5, "the agent has the argument once, and sends the result from where it is"


def test_prints_and_reads_of_a_task_do_not_disturb(agent: Agent, capfd: pytest.CaptureFixture[str]) -> None:
    def talk() -> str:
        import sys

        print("to standard output")
        return sys.stdin.read()

    assert call(agent, talk) == ""
    assert call(agent, add, 1, 1) == 2


def spawned(agent: Agent, command: str, directory: Path, **options: Any) -> tuple[int | None, str]:
    out = directory / "out"
    with open(out, "wb") as file:
        status = agent.spawn(("sh", "-c", command), str(directory), file.fileno(), file.fileno(), **options)
    return status, out.read_text()


@pytest.mark.parametrize(
    ("command", "status", "output"),
    [("pwd", 0, "{directory}\n"), ("echo x >&2; exit 7", 7, "x\n"), ("kill -9 $$", -9, ""), ("cat", 0, "")],
)
def test_programs(agent: Agent, tmp_path: Path, command: str, status: int, output: str) -> None:
    assert spawned(agent, command, tmp_path) == (status, output.format(directory=tmp_path))


def test_a_program_that_is_not_there(agent: Agent, tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        assert agent.spawn(("no-such-program",), "/", file.fileno(), file.fileno()) == 127
    assert "no-such-program" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("seconds", [0.2, None])
def test_an_agent_that_does_not_come_up_is_ended(
    seconds: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"echo $$ > {tmp_path}/pid; exec sleep 300"
    if seconds:
        monkeypatch.setattr(host, "_START_SECONDS", seconds)
        expected: type[BaseException] = AgentLost
    else:

        class Walltime(Exception):
            pass

        def wait(answers: Any, deadline: float) -> bool:
            while not (tmp_path / "pid").exists():
                time.sleep(0.01)
            raise Walltime

        monkeypatch.setattr(host._Answers, "wait", wait)
        expected = Walltime
    before = set(children())
    with pytest.raises(expected):
        Agent(Launch(argv=("sh", "-c", script), env=dict(os.environ), pass_fds=()))
    assert set(children()) == before


def children() -> list[int]:
    return host._children(os.getpid())


def test_a_command_longer_than_the_sockets_buffer_keeps_its_streams(agent: Agent, tmp_path: Path) -> None:
    argv = ("sh", "-c", "echo $# $1", "sh", *(("x" * 10_000,) * 200))
    with open(tmp_path / "output", "w") as file:
        assert agent.spawn(argv, "/", file.fileno(), file.fileno()) == 0
    assert (tmp_path / "output").read_text() == f"200 {'x' * 10_000}\n"
    assert spawned(agent, "echo short", tmp_path) == (0, "short\n")


def test_a_program_and_its_descendants_end_at_the_timeout(agent: Agent, tmp_path: Path) -> None:
    begin = time.monotonic()
    status, _ = spawned(agent, "(sleep 60 & echo $! >&2; wait); true", tmp_path, timeout=0.5)
    assert status is None and time.monotonic() - begin < 10
    sleeper = int((tmp_path / "out").read_text())
    assert _ended(sleeper)
    assert spawned(agent, "echo again", tmp_path) == (0, "again\n")


def test_programs_stay_in_the_process_group(agent: Agent, tmp_path: Path) -> None:
    _, text = spawned(agent, "cut -d' ' -f5 /proc/$$/stat", tmp_path)
    assert int(text) == os.getpgrp()


def _ended(pid: int) -> bool:
    for _ in range(50):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                time.sleep(0.1)
                continue
        return True
    return False


def test_a_killed_agent_is_lost_and_says_how(own: Agent) -> None:
    def die() -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(AgentLost, match="has ended") as caught:
        call(own, die)
    assert "ended with signal 9" in caught.value.details


def test_an_agent_that_cannot_start_is_lost() -> None:
    with pytest.raises(AgentLost):
        Agent(Launch(argv=("/bin/false",), env={}, pass_fds=()))


def test_an_agent_ends_with_the_last_descriptor_of_its_host() -> None:
    agent = start()
    process = agent._process.pid
    agent._socket.close()
    assert _ended(process)
    agent.close()


def test_the_pool_keeps_idle_agents_and_ends_the_least_recently_used() -> None:
    pool, made = AgentPool(2), []

    def make() -> Agent:
        made.append(start())
        return made[-1]

    with contextlib.closing(pool):
        for key in ("one", "two", "one", "three", "one"):
            with pool.agent(key, make) as agent:
                assert call(agent, add, 1, 1) == 2
        assert len(made) == 3
        assert [agent.alive() for agent in made] == [True, False, True], "two is the least recently used"
    assert not any(agent.alive() for agent in made)


def test_the_pool_ends_an_agent_after_any_exception_and_replaces_dead_ones() -> None:
    pool = AgentPool(2)
    with contextlib.closing(pool):
        with pytest.raises(KeyboardInterrupt), pool.agent("key", start) as first:
            raise KeyboardInterrupt
        assert not first.alive()
        with pool.agent("key", start) as second:
            pass
        os.kill(second._process.pid, signal.SIGKILL)
        assert _ended(second._process.pid)
        with pool.agent("key", start) as third:
            assert third is not second and call(third, add, 2, 2) == 4


def test_two_tasks_at_once_have_two_agents() -> None:
    pool = AgentPool(2)
    with contextlib.closing(pool), pool.agent("key", start) as one, pool.agent("key", start) as two:
        assert one is not two


def test_kill_tree_reaches_other_process_groups() -> None:
    from udi_core import PIPE, spawn

    process = spawn(["sh", "-c", "setsid sleep 60 & echo $!; wait"], stdout=PIPE)
    assert process.stdout is not None
    sleeper = int(process.stdout.readline())
    kill_tree(process.pid)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert _ended(sleeper)
    kill_tree(process.pid)  # nothing there any more
