"""The agent: a process inside an image that runs Python functions and shell commands for a process outside.

It runs on whatever Python the image has (3.6 or newer) and imports the standard library only, so nothing in it may
be newer than 3.6.  It talks over a stream socket that it is given as standard input and moves away before any task
runs: a task that reads or prints must not disturb it.

Frames, both ways: ``>I`` count of parts, ``>Q`` size of each, then the parts.  The first part is a pickle; further
parts are its out-of-band buffers (PEP 574), which spares large arrays a copy on each side.

Requests: ``("call", specification, directory, protocol, variables)``, with the pickled arguments as the parts that
follow, is answered by ``b"ok"`` and the pickled result, or by ``("error", description)``.
``("spawn", argv, directory, variables)``, followed by one byte that carries the descriptors of standard output and
error (unix(7), SCM_RIGHTS), is answered twice: ``("started", pid)`` and ``("ended", status)``.  ``variables`` of the
environment are this task's own; None if it has none.
"""

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
_functions = {}  # type: dict[str, Any]
_specifications = {}  # type: dict[str, Any]


class AgentError(Exception):
    """The function cannot be run by this Python."""


def read_exactly(fd: int, size: int) -> bytearray:
    """``size`` bytes of a descriptor as a writable buffer; the process ends if the other side has gone."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = os.readv(fd, [view])
        if not count:
            os._exit(0)
        view = view[count:]
    return data


def receive(fd: int) -> "list[bytearray]":
    """The parts of one frame."""
    (count,) = struct.unpack(">I", read_exactly(fd, 4))
    sizes = struct.unpack(">%dQ" % count, read_exactly(fd, 8 * count))
    return [read_exactly(fd, size) for size in sizes]


def send(fd: int, parts: "Sequence[Any]") -> None:
    """Write one frame, in one system call if the socket has room: each would wake the reader."""
    views = [memoryview(part).cast("B") for part in parts]
    views.insert(0, memoryview(struct.pack(">I%dQ" % len(views), len(views), *[view.nbytes for view in views])))
    while views:
        count = os.writev(fd, views[:1000])  # IOV_MAX is 1024
        while views and count >= views[0].nbytes:
            count -= views.pop(0).nbytes
        if count:
            views[0] = views[0][count:]


def dumps(value: "Any", module: "Any" = pickle, protocol: "int | None" = None) -> "list[Any]":
    """Pickle a value into parts."""
    if not _OUT_OF_BAND or (protocol is not None and protocol < 5):
        return [module.dumps(value, protocol=4)]
    buffers = []  # type: list[pickle.PickleBuffer]
    data = module.dumps(value, protocol=5, buffer_callback=buffers.append)
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
    if spec["source"] is not None:
        return _from_source(spec["source"], {})
    raise AgentError(
        "function %r cannot run in this image: its Python is %s, and the function cannot be sent as source: %s"
        % (spec["name"], ".".join(map(str, sys.version_info[:3])), problem)
    )


def _from_source(source: "dict[str, Any]", made: "dict[Any, Any]") -> "Any":
    """Compile a function, and the helpers it uses, from source.  ``made`` breaks circles."""
    key = (source["module"], source["name"])
    if key in made:
        return made[key]
    if source.get("again"):
        return None
    # A function that takes itself for the main program would run what stands behind `if __name__ == …`.
    module = types.ModuleType(source["module"] if source["module"] != "__main__" else "udi_main")
    namespace = module.__dict__
    for name, (kind, value) in source["globals"].items():
        if kind == "module":
            namespace[name] = importlib.import_module(value)
        elif kind == "member":
            namespace[name] = getattr(importlib.import_module(value[0]), value[1])
        elif kind == "value":
            namespace[name] = pickle.loads(value)
    code = compile("\n" * (source["line"] - 1) + source["text"], source["file"], "exec", dont_inherit=True)
    exec(code, namespace)
    made[key] = function = namespace[source["name"]]
    for name, (kind, value) in source["globals"].items():
        if kind == "function":
            namespace[name] = _from_source(value, made)
        elif kind == "self":
            namespace[name] = function
    return function


def describe(error: BaseException, python: str) -> "dict[str, Any]":
    """An exception as plain values, and pickled if it can be."""
    import traceback  # here, and socket below: each costs a start some 5 ms

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
    _, spec, directory, protocol, variables = request
    try:
        _change_directory(directory)
        if variables:
            os.environ.update(variables)
        function = load_function(spec)
        args, kwargs = loads(parts)
        result = function(*args, **kwargs)
    except BaseException as error:
        return [pickle.dumps(("error", describe(error, python)), protocol=4)]
    try:
        try:
            parts = dumps(result, pickle, protocol)
        except Exception:
            if spec["magic"] != MAGIC_NUMBER:
                raise
            parts = [_with_code(result, ("__main__", _specifications[spec["id"]]["module"]))]
        return [b"ok"] + parts
    except BaseException as error:
        text = "the result of %r cannot be pickled: %s: %s" % (spec["name"], type(error).__name__, error)
        try:
            raise AgentError(text) from error
        except AgentError as wrapped:
            return [pickle.dumps(("error", describe(wrapped, python)), protocol=4)]


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


def spawn(request: "Any", requests: int, environ: "dict[str, str]") -> int:
    """Start a program; its process id.

    It stays in the process group of the worker: what a provider does to that group, it does to this program too.  It
    gets the environment that the agent itself began with: a task may have changed ``os.environ`` since, which is not
    for others to see.
    """
    import socket

    _, argv, directory, variables = request
    connection = socket.socket(fileno=requests)
    try:
        _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(2 * struct.calcsize("i")))
    finally:
        connection.detach()
    output, errors = struct.unpack("ii", ancillary[0][2])
    if variables:
        environ = dict(environ, **variables)
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
    requests = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    python = ".".join(map(str, sys.version_info[:3]))
    hello = {"magic": MAGIC_NUMBER, "python": python, "protocol": 5 if _OUT_OF_BAND else 4, "pid": os.getpid()}
    send(requests, [pickle.dumps(hello, protocol=4)])
    while True:
        parts = receive(requests)
        request = pickle.loads(parts[0])
        if request[0] == "call":
            answer = call(request, parts[1:], python)
            del parts, request
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    pass
            send(requests, answer)
        else:
            pid = spawn(request, requests, environ)
            send(requests, [pickle.dumps(("started", pid), protocol=4)])
            _, status = os.waitpid(pid, 0) if pid else (0, 127 << 8)
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            send(requests, [pickle.dumps(("ended", code), protocol=4)])


if __name__ == "__main__":
    main()
