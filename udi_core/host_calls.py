"""Programs of the node, called from inside an image: ``sbatch``, ``srun`` and their like, as if it had them.

A batch system's clients work where its configuration, its keys and its libraries are: on the node, not in an image.
:class:`HostCalls` puts small commands of their names first on a task's PATH.  Each asks this process, through a Unix
socket, to run the real one: with the caller's standard streams themselves (descriptors are passed, nothing is
copied), arguments, directory and changed variables; signals go in, the exit status comes back.

The socket lies in a private directory, and the kernel vouches for the caller's user id (SO_PEERCRED).  What may be
called is the site's to say (``policy.host_programs``).  It gives a task nothing that its user has not got, but it does
lead out of the image: it is there only where somebody asked for it.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from udi_core import _process, temporary
from udi_core.config import Config
from udi_core.errors import LaunchError, PolicyError, ToolMissing, UdiError
from udi_core.mount import MountedImage
from udi_core.sandbox import DEFAULT_PATH, Host, Launch, LaunchSpec, build, names_files
from udi_core.store import PythonInfo
from udi_core.volumes import Volume

#: Where an image sees the socket and the commands.
DIRECTORY = "/.udi/host"

_CLIENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent", "host_client.py")
_OLDEST_PYTHON = (3, 6)
_MAX_REQUEST = 64 << 20
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL for a program whose caller has gone
# Where a shell is and how deep is its own matter.
_OF_A_SHELL = frozenset({"OLDPWD", "PWD", "SHLVL", "_"})


class HostCalls:
    """Serves the calls of one sandbox, from threads of this process, until it is closed.

    Build the task with :meth:`build` in the place of :func:`udi_core.sandbox.build`, and keep this open for as long as
    the task runs: ``with HostCalls(config) as calls: …``.  A program that still runs at the end is ended.
    """

    def __init__(
        self,
        config: Config,
        *,
        environ: Mapping[str, str] | None = None,
        cwd: str | None = None,
        rewrite: Callable[[str, list[str]], list[str]] | None = None,
    ) -> None:
        """Start to serve.  ``environ`` and ``cwd`` are what called programs begin with; None for this process's.

        ``rewrite`` gets a program's name and argv, and returns the argv to start; it may be called from any thread.

        Raises:
            PolicyError: the site allows none.
            ToolMissing: the node has none of those that the site allows.
            LaunchError: the node directory cannot be used.
        """
        if not config.policy.host_programs:
            raise PolicyError(
                "The site does not allow programs of the node to be called from an image",
                "policy.host_programs is empty.",
                "Ask the site, or leave out --bridge.",
            )
        self._environ = dict(os.environ if environ is None else environ)
        self._cwd = cwd or os.getcwd()
        self._rewrite = rewrite or (lambda name, argv: argv)
        self._programs = available(config.policy.host_programs, self._environ.get("PATH", ""))
        if not self._programs:
            raise ToolMissing(
                "This node has none of the programs that an image may call",
                f"Looked for {', '.join(config.policy.host_programs)} on PATH.",
                "Start where the batch system's clients are installed.",
            )
        self._initial: Mapping[str, str] = {}
        self._running: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._directory, self._kept = temporary.make(config.node_dir)
        except OSError as error:
            raise LaunchError(
                "No directory can be made for calls to the node", str(error), "Set UDI_NODE_DIR to one of your own."
            ) from error
        os.mkdir(os.path.join(self._directory, "bin"))
        for name in self._programs:
            os.symlink("../call", os.path.join(self._directory, "bin", name))
        self._listener = _listen(self._directory)
        threading.Thread(target=self._accept, name="udi-host-calls", daemon=True).start()

    @property
    def programs(self) -> Mapping[str, str]:
        """What can be called, by name: the node's paths."""
        return self._programs

    def build(self, spec: LaunchSpec, mounted: MountedImage, config: Config, host: Host) -> Launch:
        """:func:`udi_core.sandbox.build`, with the commands on the task's PATH.

        Raises:
            LaunchError: the image has no Python that could run them.
        """
        self._write_client(mounted.image.python, str(mounted.image.reference))
        path = spec.env.get("PATH") or mounted.image.config.env.get("PATH", DEFAULT_PATH)
        shown = Volume(source=self._directory, target=DIRECTORY, read_only=True)
        extended = replace(
            spec,
            env={**spec.env, "PATH": f"{DIRECTORY}/bin:{path}"},
            support=(*spec.support, shown),
        )
        launch = build(extended, mounted, config, host)
        self._initial = launch.env
        return launch

    def _write_client(self, python: PythonInfo | None, image: str) -> None:
        if python is None or tuple(map(int, python.version.split(".")[:2])) < _OLDEST_PYTHON:
            raise LaunchError(
                f"{image} cannot call programs of the node",
                "The commands that do it need Python 3.6 or later in the image.",
                "Use an image with Python, or call them outside of it.",
            )
        with open(_CLIENT) as source:
            text = f"#!{python.path} -IS\n{source.read()}"
        made = os.path.join(self._directory, "call")
        with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "w") as file:
            file.write(text)

    def close(self) -> None:
        """Serve no more, end the programs that still run, and remove the directory; may be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            running = list(self._running.values())
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for process in running:
            _end(process)
        temporary.remove(self._directory, self._kept)

    def __enter__(self) -> HostCalls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), name="udi-host-call", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # A caller that goes away in the middle is no failure of ours.
        with connection, contextlib.suppress(OSError):
            if _peer(connection) == os.geteuid():
                answer = self._answer(connection)
                if answer:
                    connection.sendall(json.dumps(answer).encode())
                # To close is not enough while another thread waits for signals: the other side would see no end.
                connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, connection: socket.socket) -> dict[str, Any] | None:
        request, streams = _receive(connection)
        try:
            if request is None or len(streams) != 3:
                return None
            try:
                process, said = self._start(request, streams)
            except UdiError as error:
                return {"exit": 127 if isinstance(error, ToolMissing) else 126, "said": f"udi: {error}"}
        finally:
            for descriptor in streams:
                os.close(descriptor)
        threading.Thread(target=_pass_signals, args=(connection, process), daemon=True).start()
        status = process.wait()
        with self._lock:
            self._running.pop(process.pid, None)
        result: dict[str, Any] = {"signal": -status} if status < 0 else {"exit": status}
        return {**result, "said": said}

    def _start(self, request: Mapping[str, Any], streams: list[int]) -> tuple[Any, str]:
        """The program that a request asks for, started; and what its user should know."""
        name = str(request["program"])
        program = self._programs.get(name)
        if program is None:
            raise LaunchError(f"{name} cannot be called from an image", f"Can be: {', '.join(self._programs)}.")
        said, cwd = "", str(request["cwd"])
        if not (os.path.isdir(cwd) and os.access(cwd, os.X_OK)):
            said = f"udi: {cwd} is a directory of the image only: {name} ran in {self._cwd}"
            cwd = self._cwd
        with self._lock:
            if self._closed:
                raise LaunchError(f"{name} cannot be called any more", "The image is being left.")
            try:
                process = _process.spawn(
                    self._rewrite(name, [program, *map(str, request["argv"])]),
                    stdin=streams[0],
                    stdout=streams[1],
                    stderr=streams[2],
                    cwd=cwd,
                    env=changed(self._environ, self._initial, request["env"]),
                    start_new_session=True,
                )
            except OSError as error:
                raise LaunchError(f"{program} cannot be started", error.strerror or str(error)) from error
            self._running[process.pid] = process
        return process, said


def available(names: tuple[str, ...], path: str) -> dict[str, str]:
    """Those of ``names`` that are programs on ``path``."""
    found = ((name, shutil.which(name, path=path)) for name in names)
    return {name: program for name, program in found if program is not None and "/" not in name}


def changed(node: Mapping[str, str], initial: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """The environment of a called program: the node's, with what has been set and unset since the task began.

    So ``SEED=3 sbatch job.sh`` works, and nothing that the image itself sets gets out.
    """

    def travels(name: str) -> bool:
        return name not in _OF_A_SHELL and not names_files(name)

    env = {name: value for name, value in node.items() if name in now or name not in initial or not travels(name)}
    env.update({name: value for name, value in now.items() if initial.get(name) != value and travels(name)})
    return env


def _listen(directory: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Through its descriptor: a socket's path may have 107 bytes only.
        listener.bind(f"/proc/self/fd/{handle}/socket")
        os.chmod(os.path.join(directory, "socket"), 0o600)
    finally:
        os.close(handle)
    listener.listen(64)
    return listener


def _peer(connection: socket.socket) -> int:
    """The user id of who connected, as the kernel saw it."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A request and the descriptors that came with it; None if it is not whole or makes no sense."""
    room = socket.CMSG_SPACE(3 * array.array("i").itemsize)
    head, ancillary, _, _ = connection.recvmsg(4, room, socket.MSG_CMSG_CLOEXEC)
    streams = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            streams.frombytes(data[: len(data) - len(data) % streams.itemsize])
    try:
        size = struct.unpack(">I", head + _exactly(connection, 4 - len(head)))[0]
        if size > _MAX_REQUEST:
            return None, list(streams)
        request = json.loads(_exactly(connection, size))
        argv, env = request["argv"], request["env"]
        texts = [request["program"], request["cwd"], *argv, *env, *env.values()]
        whole = isinstance(argv, list) and all(isinstance(each, str) and "\0" not in each for each in texts)
    except (EOFError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    return (request if whole else None), list(streams)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _pass_signals(connection: socket.socket, process: Any) -> None:
    """Every byte that comes is a signal for the program; the end of them, while it runs, is its caller's death."""
    with contextlib.suppress(OSError):
        while numbers := connection.recv(64):
            for number in numbers:
                with contextlib.suppress(OSError, ValueError):
                    process.send_signal(number)
    if process.poll() is None:
        _end(process)


def _end(process: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(_process.TimeoutExpired):
            process.wait(_GRACE)
            return
