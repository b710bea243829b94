"""The agent: a process inside an image that runs Python functions and shell commands for a process outside.

It runs on whatever Python the image has (3.6 or newer) and imports the standard library only, so nothing in it may
be newer than 3.6.  It talks over a stream socket that it is given as standard input and moves away before any task
runs: a task that reads or prints must not disturb it.

Frames, both ways: ``>I`` count of parts, ``>Q`` size of each, then the parts.  The first part is a pickle; further
parts are its out-of-band buffers (PEP 574), which spares large arrays a copy on each side.  A part is bytes, or a
buffer of bytes.

Requests: ``("call", specification, directory, protocol)``, followed by a recipe of what the arguments need (or an empty
part) and by the pickled arguments, is answered by ``b"ok"`` and the pickled result (``b"plain"``
if that is a small value of a builtin type, which may be opened anywhere), or by ``("error", description)``.
``("spawn", argv, directory)``, whose frame carries the descriptors of standard output and error (unix(7), SCM_RIGHTS),
is answered twice: ``("started", pid)`` and ``("ended", status)``.
"""

import _socket  # and not socket, which costs a start 5 ms
import importlib
import os
import pickle
import signal
import struct
import sys
import types
from importlib.util import MAGIC_NUMBER

TYPE_CHECKING = False  # importing typing costs this start 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_OUT_OF_BAND = sys.version_info >= (3, 8)
_AHEAD = 65536
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_functions = {}  # type: dict[str, Any]
_workshops = {}  # type: dict[str, Any]
_specifications = {}  # type: dict[str, Any]


class AgentError(Exception):
    """The function cannot be run by this Python."""


class Stream:
    """Frames from a stream; a small one costs one read, and a large part goes where it shall be at once."""

    def __init__(self) -> None:
        self._buffer = bytearray(_AHEAD)
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0

    def read(self, view: memoryview) -> int:
        """Wait for bytes, put some into ``view``, and return how many; never 0."""
        raise NotImplementedError

    def receive(self) -> "list[bytearray]":
        """The parts of the next frame."""
        self._ahead(4)
        (count,) = struct.unpack_from(">I", self._buffer, self._begin)
        self._ahead(4 + 8 * count)
        sizes = struct.unpack_from(">%dQ" % count, self._buffer, self._begin + 4)
        self._begin += 4 + 8 * count
        return [self._part(size) for size in sizes]

    def _ahead(self, size: int) -> None:
        """Have the next ``size`` bytes in the buffer, and whatever comes with them."""
        have = self._end - self._begin
        if have < size:
            if size > len(self._buffer):
                self._buffer = bytearray(self._view[self._begin : self._end]) + bytearray(size - have)
                self._view = memoryview(self._buffer)
            elif self._begin:
                self._view[:have] = self._buffer[self._begin : self._end]
            self._begin, self._end = 0, have
            while self._end < size:
                self._end += self.read(self._view[self._end :])

    def _part(self, size: int) -> bytearray:
        begin, self._begin = self._begin, min(self._begin + size, self._end)
        have = self._begin - begin
        if have == size:
            return self._buffer[begin : self._begin]
        data = bytearray(size)
        view = memoryview(data)
        view[:have] = self._view[begin : self._begin]
        while have < size:
            have += self.read(view[have:])
        return data


class Requests(Stream):
    """Frames from the process outside; this one ends when that has gone."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
        self._room = _socket.CMSG_SPACE(2 * struct.calcsize("i"))
        self._descriptors = b""

    def read(self, view: memoryview) -> int:
        count, ancillary, _, _ = self._socket.recvmsg_into([view], self._room)
        if not count:
            os._exit(0)
        if ancillary:
            self._descriptors = ancillary[0][2]
        return count

    def descriptors(self) -> "tuple[int, int]":
        """The descriptors of output and errors that came with the last frame."""
        output, errors = struct.unpack("ii", self._descriptors)
        return output, errors


def frame(parts: "Sequence[Any]") -> bytes:
    """The beginning of a frame, which the parts follow."""
    return struct.pack(">I%dQ" % len(parts), len(parts), *map(len, parts))


def send(fd: int, parts: "Sequence[Any]") -> None:
    """Write one frame, in one system call if the socket has room: each would wake the reader."""
    views = [frame(parts)]  # type: list[Any]
    views += parts
    if sum(map(len, views)) <= _AHEAD:
        views = [b"".join(views)]
    while views:
        count = os.writev(fd, views[:1000])  # IOV_MAX is 1024
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = memoryview(views[0])[count:]


def dumps(value: "Any", protocol: "int | None" = None) -> "list[Any]":
    """Pickle a value into parts."""
    if not _OUT_OF_BAND or (protocol is not None and protocol < 5):
        return [pickle.dumps(value, protocol=4)]
    buffers = []  # type: list[pickle.PickleBuffer]
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return [data] + [buffer.raw() for buffer in buffers]


def loads(parts: "Sequence[Any]") -> "Any":
    """The value of some parts."""
    if len(parts) == 1:
        return pickle.loads(parts[0])
    return pickle.loads(parts[0], buffers=parts[1:])


def load_function(spec: "dict[str, Any]") -> "Any":
    """The function that a specification describes; each is made once in the life of an agent."""
    spec = _specifications.setdefault(spec["id"], spec)
    found = _functions.get(spec["id"])
    if found is None:
        found = _make_function(spec)
        _functions[spec["id"]] = found
    return found


def _make_function(spec: "dict[str, Any]") -> "Any":
    problem = spec.get("problem")
    if spec["magic"] == MAGIC_NUMBER and spec["bytecode"] is not None:
        try:
            return pickle.loads(spec["bytecode"])
        except Exception as error:
            # Usually cloudpickle, which is not here, or is another version; the source does without.
            problem = problem or "%s: %s" % (type(error).__name__, error)
    source = spec["source"]
    if source is not None:
        workshop = _workshops.setdefault(spec["id"], _Workshop())
        _follow(source["steps"], workshop)
        return workshop.space(source["space"])[source["name"]]
    raise AgentError(
        "function %r cannot run in this image: its Python is %s, and the function cannot be sent as source: %s"
        % (spec["name"], ".".join(map(str, sys.version_info[:3])), problem)
    )


def _follow(steps: "Sequence[Any]", workshop: "_Workshop") -> None:
    """Do what a recipe says (see udi_core/agent/source.py); steps that were done are not done again."""
    with workshop:
        for step in steps:
            if step not in workshop.done:
                workshop.done.add(step)
                _STEPS[step[0]](workshop, *step[1:])


class _Workshop:
    """The namespaces in which the definitions of one function's script live.

    As a context it puts its modules where ``pickle`` and ``dataclasses`` look for them.
    """

    def __init__(self) -> None:
        self.spaces = {}  # type: dict[str, dict[str, Any]]
        self.done = set()  # type: set[Any]
        self._modules = {}  # type: dict[str, Any]
        self._hidden = {}  # type: dict[str, Any]

    def module(self, name: str) -> "dict[str, Any]":
        if name not in self._modules:
            package = name.partition(".")[0]
            if package != name:  # importing a submodule imports its package first
                try:
                    importlib.import_module(package)
                except ImportError:
                    self._add(package)
            self._add(name)
        return self.spaces[name]

    def _add(self, name: str) -> None:
        module = types.ModuleType(name)
        self._modules[name] = module
        self.spaces[name] = module.__dict__
        self._hidden.setdefault(name, sys.modules.get(name))
        sys.modules[name] = module

    def space(self, name: str) -> "dict[str, Any]":
        # A closure's space has colons in its name.
        return self.spaces.setdefault(name, {}) if ":" in name else self.module(name)

    def __enter__(self) -> None:
        self._hidden = {name: sys.modules.get(name) for name in self._modules}
        sys.modules.update(self._modules)

    def __exit__(self, *exception: "Any") -> None:
        for name in self._modules:
            hidden = self._hidden.get(name)
            if hidden is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = hidden


def _import(workshop: "_Workshop", space: str, name: str, module: str) -> None:
    found = importlib.import_module(module)
    if name:
        workshop.space(space)[name] = found


def _member(workshop: "_Workshop", space: str, name: str, module: str, qualname: str) -> None:
    found = importlib.import_module(module)  # type: Any
    for each in qualname.split("."):
        found = getattr(found, each)
    workshop.space(space)[name] = found


def _value(workshop: "_Workshop", space: str, name: str, data: bytes) -> None:
    workshop.space(space)[name] = pickle.loads(data)


def _define(workshop: "_Workshop", space: str, file: str, line: int, text: str) -> None:
    code = compile("\n" * (line - 1) + text, file, "exec", dont_inherit=True)
    exec(code, workshop.space(space))


def _make(
    workshop: "_Workshop", space: str, name: str, file: str, line: int, text: str, module: str, factory: "str | None"
) -> None:
    made = {}  # type: dict[str, Any]
    above = line - 1 if factory is None else line - 2
    exec(compile("\n" * above + text, file, "exec", dont_inherit=True), workshop.module(module), made)
    values = workshop.space(space)
    if factory is None:
        values[""] = made[name]
    else:
        values[""] = made["udi_factory"](*[values[each] for each in factory.split(",") if each])


def _bind(workshop: "_Workshop", space: str, name: str, other: str, other_name: str) -> None:
    workshop.space(space)[name] = workshop.space(other)[other_name]


_STEPS = {
    "import": _import,
    "member": _member,
    "value": _value,
    "define": _define,
    "make": _make,
    "bind": _bind,
}  # type: dict[str, Any]


def describe(error: BaseException, python: str) -> "dict[str, Any]":
    """An exception as plain values, and pickled if it can be."""
    import traceback  # here: it costs a start 5 ms

    kind = type(error)
    return {
        "module": kind.__module__,
        "name": kind.__qualname__,
        "bases": [each.__name__ for each in kind.__mro__ if each.__module__ == "builtins"],
        "message": str(error),
        "args": _pickled(error.args),
        "state": _pickled(error.__dict__),
        "traceback": traceback.format_exc(),
        "pickled": _pickled(error),
        "python": python,
    }


def _pickled(value: "Any") -> "bytes | None":
    try:
        data = pickle.dumps(value, protocol=4)
        pickle.loads(data)  # some exceptions pickle well and unpickle badly
        return data
    except Exception:
        return None


def call(request: "Any", parts: "Sequence[Any]", python: str) -> "list[Any]":
    """Run a function; the parts of the answer.  The arguments are unpickled only after the function is there."""
    _, spec, directory, protocol = request
    workshop = None
    try:
        _change_directory(directory)
        function = load_function(spec)
        workshop = _workshops.get(spec["id"])
        args, kwargs = _arguments(parts, workshop)
        result = function(*args, **kwargs)
    except BaseException as error:
        return _failure(error, workshop, python)
    try:
        parts = _result(result, spec, workshop, protocol)
        plain = type(result) in _PLAIN and len(parts[0]) < 4096
        return [b"plain" if plain else b"ok"] + parts
    except BaseException as error:
        text = "the result of %r cannot be pickled: %s: %s" % (spec["name"], type(error).__name__, error)
        try:
            raise AgentError(text) from error
        except AgentError as wrapped:
            return _failure(wrapped, None, python)


def _arguments(parts: "Sequence[Any]", workshop: "_Workshop | None") -> "Any":
    recipe = bytes(parts[0])
    if workshop is None:
        return loads(parts[1:])
    if recipe and recipe not in workshop.done:
        _follow(pickle.loads(recipe), workshop)
        workshop.done.add(recipe)
    with workshop:
        return loads(parts[1:])


def _result(value: "Any", spec: "dict[str, Any]", workshop: "_Workshop | None", protocol: int) -> "list[Any]":
    if workshop is not None:
        with workshop:
            return dumps(value, protocol)
    try:
        return dumps(value, protocol)
    except Exception:
        if spec["magic"] != MAGIC_NUMBER:
            raise
        return [_with_code(value, ("__main__", _specifications[spec["id"]]["module"]))]


def _failure(error: BaseException, workshop: "_Workshop | None", python: str) -> "list[Any]":
    if workshop is None:
        return [pickle.dumps(("error", describe(error, python)), protocol=4)]
    with workshop:
        return [pickle.dumps(("error", describe(error, python)), protocol=4)]


def _with_code(value: "Any", own: "tuple[str, ...]") -> bytes:
    """A value pickled by cloudpickle for the same Python; what the caller's script defines, by its name there."""
    import io
    import pkgutil

    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: "Any") -> "Any":
            named = isinstance(value, (type, types.FunctionType)) and "<" not in value.__qualname__
            if named and value.__module__ in own:  # not <locals>, no <lambda>
                return pkgutil.resolve_name, ("%s:%s" % (value.__module__, value.__qualname__),)
            return super().reducer_override(value)

    file = io.BytesIO()
    Pickler(file, 4).dump(value)
    return file.getvalue()


def spawn(request: "Any", output: int, errors: int, environ: "dict[str, str]") -> int:
    """Start a program; its process id.

    It stays in the process group of the worker: what a provider does to that group, it does to this program too.  It
    gets the environment that the agent itself began with: a task may have changed ``os.environ`` since, which is not
    for others to see.
    """
    _, argv, directory = request
    try:
        _change_directory(directory)
        if hasattr(os, "posix_spawnp"):
            # Half the time of a fork, which copies the page tables of whatever the agent's tasks have loaded.
            moves = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, errors, 2)]
            pipe = [signal.SIGPIPE]  # Python ignores it, and that would be inherited
            return os.posix_spawnp(argv[0], argv, environ, file_actions=moves, setsigdef=pipe)
        return _fork(argv, environ, output, errors)
    except OSError as error:
        os.write(errors, ("udi: %s: %s\n" % (argv[0], error.strerror)).encode())
        return 0
    finally:
        os.close(output)
        os.close(errors)


def _fork(argv: "list[str]", environ: "dict[str, str]", output: int, errors: int) -> int:
    """What posix_spawn does, for Python 3.6 and 3.7."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(argv[0], argv, environ)
    except BaseException as error:
        os.write(2, ("udi: %s: %s\n" % (argv[0], error)).encode())
    os._exit(127)


def _change_directory(directory: str) -> None:
    if directory:
        try:
            os.chdir(directory)
        except OSError:
            pass  # not to be seen in the image: the agent's own directory serves


def main() -> None:
    # Unpickling must find this module by a name that is the same on both sides.
    sys.modules["udi_agent"] = sys.modules["__main__"]
    AgentError.__module__ = "udi_agent"
    del sys.path[0]  # this file's directory, where the host's other modules are
    environ = dict(os.environ)
    library = os.environ.pop("UDI_AGENT_LIBRARY", None)
    environ.pop("UDI_AGENT_LIBRARY", None)
    if library:
        # Before the image's own: what the submit side has pickled, its version of cloudpickle can open.
        sys.path.insert(0, library)
    fd = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    python = ".".join(map(str, sys.version_info[:3]))
    hello = {"magic": MAGIC_NUMBER, "python": python, "protocol": 5 if _OUT_OF_BAND else 4, "pid": os.getpid()}
    send(fd, [pickle.dumps(hello, protocol=4)])
    requests = Requests(fd)
    asked, request = b"", None  # type: Any, Any
    while True:
        parts = requests.receive()
        if parts[0] != asked:  # else it is the last one's function, with other arguments
            asked = parts[0]
            request = pickle.loads(asked)
        if request[0] == "call":
            answer = call(request, parts[1:], python)
            del parts
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    pass
            send(fd, answer)
        else:
            pid = spawn(request, *requests.descriptors(), environ)
            send(fd, [pickle.dumps(("started", pid), protocol=4)])
            _, status = os.waitpid(pid, 0) if pid else (0, 127 << 8)
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            send(fd, [pickle.dumps(("ended", code), protocol=4)])


if __name__ == "__main__":
    main()
