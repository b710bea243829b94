"""The host side of an agent: start it in an image, send it work, and know when it is gone."""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from udi_core import _process, record
from udi_core.agent import in_image
from udi_core.errors import LaunchError
from udi_core.sandbox import Launch, sourced
from udi_core.volumes import Volume

#: Where an image sees the agent, and pure-Python packages of the host that it may use.
DIRECTORY = "/.udi/agent"
LIBRARY = "/.udi/lib"

_POLL_MS = 200
_POLL = struct.pack("ll", 0, _POLL_MS * 1000)  # struct timeval
_TICK = 0.01
_START_SECONDS = 120.0  # a cold Python on a busy parallel file system


class AgentLost(LaunchError):
    """The agent's process ended while it was needed; another one can be started."""


class Agent:
    """A running agent.  One request at a time; not for use by two threads at once."""

    def __init__(self, launch: Launch) -> None:
        """Start it and wait until it answers.

        Raises:
            AgentLost: it ended before it answered, or did not answer; the details hold what is known.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            # More than the kernel's 208 KiB only where an administrator allows it; asking costs nothing.
            for each in (ours, theirs):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self._process = _process.spawn(
                launch.argv, env=launch.env, stdin=theirs.fileno(), pass_fds=launch.pass_fds, close_fds=True
            )
        self._socket = ours
        self._record = launch.record
        self._cpu = 0.0
        #: Functions that the agent has got; it keeps them for its life.
        self._functions: set[str] = set()
        self._asked = ("", ""), b""
        self._fd = ours.fileno()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _POLL)
        self._answers = _Answers(ours, self._lost)
        try:
            hello = self._hello()
        except BaseException:
            self.close()
            raise
        self.python: str = hello["python"]
        self.magic: bytes = hello["magic"]
        self.protocol: int = hello["protocol"]
        self._pid: int = hello["pid"]

    def _hello(self) -> dict[str, Any]:
        """What an agent says of itself when it has started."""
        parts = self._receive(time.monotonic() + _START_SECONDS)
        if not parts:
            raise AgentLost(
                "The Python process in the image does not answer",
                f"It has not for {_START_SECONDS:g} seconds since it was started; it is ended now.",
                "See whether the setup waits for something, and whether the file system of the image store answers.",
            )
        found: dict[str, Any] = pickle.loads(parts[0])  # noqa: S301 - our own agent
        return found

    def call(
        self,
        specification: dict[str, Any],
        arguments: Sequence[Any],
        directory: str,
    ) -> list[bytearray]:
        """Run a function; ``arguments`` are the parts of pickled ``(args, kwargs)``.  The parts of the answer.

        Waits in short polls, so that an exception that another thread throws into this one (Parsl's walltime)
        gets through; the agent must then be closed.
        """
        self._send([self._request(specification, directory), *arguments])
        self._functions.add(specification["id"])
        return self._receive()

    def _request(self, specification: dict[str, Any], directory: str) -> bytes:
        """The first part of a call; the very same bytes for the same function, which the agent then need not open."""
        if specification["id"] not in self._functions:
            return pickle.dumps(("call", specification, directory, self.protocol), protocol=4)
        key = specification["id"], directory
        if self._asked[0] != key:
            sent = {name: specification[name] for name in ("id", "magic", "name")}
            self._asked = key, pickle.dumps(("call", sent, directory, self.protocol), protocol=4)
        return self._asked[1]

    def spawn(
        self,
        argv: Sequence[str],
        directory: str,
        output: int,
        errors: int,
        timeout: float | None = None,
    ) -> int | None:
        """Run a program with these descriptors as its output; its status as in subprocess, or None at ``timeout``.

        At the time-out, and on any exception, the program and its descendants are killed.
        """
        descriptors = array.array("i", [output, errors])
        self._send([pickle.dumps(("spawn", list(argv), directory), protocol=4)], descriptors)
        _, pid = pickle.loads(self._receive()[0])  # noqa: S301
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = False
        try:
            parts = self._receive(deadline)
            ended = bool(parts)
        finally:
            if not ended and pid:
                kill_tree(pid)
        if not ended:
            self._receive()
            return None
        status: int = pickle.loads(parts[0])[1]  # noqa: S301
        return status

    @contextlib.contextmanager
    def recorded(self, task: str, began: float) -> Iterator[Callable[[int], None]]:
        """Write a line of the run record for the length of a block, which calls what it is given with an exit status.

        ``began`` is the time.time() at which work on the task began; an agent may have been started since.
        """
        start, status = time.time(), -1

        def end(value: int) -> None:
            nonlocal status
            status = value

        try:
            yield end
        finally:
            if self._record[0]:
                seconds = time.time() - start
                # A shorter task used no tick of CPU that could be told; the next one reads them for both.
                usage = self._usage() if seconds >= _TICK or not self._cpu else {}
                file, head = self._record
                record.write(
                    file,
                    head,
                    task=task,
                    start=began,
                    setup=start - began,
                    seconds=seconds,
                    exit=status,
                    **usage,
                )

    def _usage(self) -> dict[str, float]:
        """CPU seconds of the agent and its ended children since it was last asked, and bytes of memory that it has now.

        proc_pid_stat(5).
        """
        try:
            with open(f"/proc/{self._pid}/stat", "rb", buffering=0) as file:
                words = file.read().rpartition(b")")[2].split()
        except OSError:
            return {}
        before, self._cpu = self._cpu, sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")
        return {"cpu": max(0.0, self._cpu - before), "rss": int(words[21]) * os.sysconf("SC_PAGE_SIZE")}

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it at once.  Idempotent."""
        self._socket.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _send(self, parts: Sequence[Any], descriptors: array.array[int] | None = None) -> None:
        try:
            if descriptors is None:
                in_image.send(self._fd, parts)
            else:
                data = b"".join([in_image.frame(parts), *parts])
                sent = self._socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
                self._socket.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost() from None

    def _receive(self, deadline: float | None = None) -> list[bytearray]:
        """The parts of one frame; none at the deadline."""
        return self._answers.receive() if deadline is None or self._answers.wait(deadline) else []

    def _lost(self) -> AgentLost:
        try:
            status = _process.describe_status(self._process.wait(timeout=5))
        except _process.TimeoutExpired:
            status = "its connection closed, but it still runs"
        return AgentLost(
            "The Python process in the image has ended",
            f"It ended with {status}; what it printed is in the worker's standard error.",
            "Killed by the out-of-memory killer, a crash in a C extension, or no working Python in the image.",
        )


class _Answers(in_image.Stream):
    """Frames from an agent."""

    def __init__(self, connection: socket.socket, lost: Callable[[], Exception]) -> None:
        super().__init__()
        self._socket, self._lost = connection, lost

    def read(self, view: memoryview) -> int:
        """As the base class; raises what ``lost`` returns if the agent has gone."""
        while True:
            try:
                count = self._socket.recv_into(view)
            except BlockingIOError:
                continue  # the socket's own time-out (socket(7), SO_RCVTIMEO), for exceptions of other threads
            except ConnectionResetError:
                count = 0
            if not count:
                raise self._lost()
            return count

    def wait(self, deadline: float) -> bool:
        """Whether there is something to read before time.monotonic() is ``deadline``."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while self._begin == self._end:
            left = deadline - time.monotonic()
            if poll.poll(min(_POLL_MS, max(0, left * 1000))):
                break
            if left <= 0:
                return False
        return True


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants, of whatever process group they are; none of them need be there any more."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts no further ones meanwhile
    for child in _children(pid):
        kill_tree(child)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


class AgentPool:
    """Agents by key; idle ones are kept for the next task, the least recently used are ended first.

    Safe for use by several threads: an agent belongs to one task at a time.
    """

    def __init__(self, idle: int = 4) -> None:
        self._limit = idle
        self._idle: OrderedDict[int, tuple[Hashable, Agent]] = OrderedDict()
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @contextlib.contextmanager
    def agent(self, key: Hashable, start: Callable[[], Agent]) -> Iterator[Agent]:
        """An agent for the length of the block.  After any exception it is ended, because its state is unknown."""
        agent = self._take(key) or start()
        try:
            yield agent
        except BaseException:
            agent.close()
            raise
        self._give(key, agent)

    def _take(self, key: Hashable) -> Agent | None:
        if self._pid != os.getpid():  # forked: the agents are our parent's
            self._idle, self._pid = OrderedDict(), os.getpid()
        with self._lock:
            number = next((number for number, (other, _) in reversed(self._idle.items()) if other == key), None)
            if number is None:
                return None
            _, agent = self._idle.pop(number)
        if agent.alive():
            return agent
        agent.close()
        return None

    def _give(self, key: Hashable, agent: Agent) -> None:
        with self._lock:
            self._idle[id(agent)] = key, agent
            surplus = [self._idle.popitem(last=False)[1][1] for _ in range(len(self._idle) - self._limit)]
        for each in surplus:
            each.close()

    def close(self) -> None:
        """End all idle agents."""
        with self._lock:
            agents = [agent for _, agent in self._idle.values()]
            self._idle.clear()
        for agent in agents:
            agent.close()


def command(python: str, setup: str = "", shell: str = "") -> tuple[str, ...]:
    """The command line, inside the image, of an agent; ``setup`` is sourced by ``shell`` first.

    Raises:
        LaunchError: there is a ``setup``, and the image has no shell.
    """
    return sourced(setup, shell, (python, "-s", f"{DIRECTORY}/in_image.py"))


def support() -> tuple[tuple[Volume, ...], dict[str, str]]:
    """The volumes, and the variables, that an agent needs in its sandbox."""
    volumes = [Volume(source=os.path.dirname(in_image.__file__), target=DIRECTORY, read_only=True)]
    env = {}
    with contextlib.suppress(ImportError):
        import cloudpickle

        source = os.path.dirname(cloudpickle.__file__)
        volumes.append(Volume(source=source, target=f"{LIBRARY}/cloudpickle", read_only=True))
        env["UDI_AGENT_LIBRARY"] = LIBRARY
    return tuple(volumes), env
