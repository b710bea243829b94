"""What a task is while it travels: callables that take the place of the user's function.

A worker imports this module for its first task, so it must not import what only the submit side needs.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from functools import lru_cache
from pickle import PickleBuffer
from typing import Any

from parsl.app.errors import RemoteExceptionWrapper
from parsl.dataflow.memoization import id_for_memo

from udi_parsl import worker
from udi_parsl.images import TaskImage, thawed
from udi_parsl.results import SUBMITTER, Sealed


class _Shipped:
    """A callable that Parsl sends to a worker in the place of the user's function.

    Pickled by reference to its class, which costs a tenth of what Parsl's own wrapper function does; so it does what
    that wrapper does: an exception becomes a result.
    """

    __name__: str

    def __call__(self, *args: Any, udi_image: TaskImage | None = None, **kwargs: Any) -> Any:
        try:
            if udi_image is None:  # an executor of ours has put it before the arguments, as bytes
                return self._run_sent(thawed(args[0]), args[1:], kwargs)
            return self._run(udi_image, args, kwargs)
        except Exception as error:
            return RemoteExceptionWrapper(type(error), error, error.__traceback__)

    def _run(self, image: TaskImage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _run_sent(self, image: TaskImage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._run(image, args, kwargs)


class ImageFunction(_Shipped):
    """A python app's function."""

    def __init__(self, specification: dict[str, Any], module: str, submitter: str) -> None:
        self.specification, self._submitter = specification, submitter
        self.__name__, self.__module__ = specification["name"], module
        self._pickled: bytes | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_function, (self.pickled(),)

    def pickled(self) -> bytes:
        """What :func:`_open_function` opens; made once."""
        if self._pickled is None:
            values = self.specification, self.__module__, self._submitter
            self._pickled = pickle.dumps(values, protocol=4)
        return self._pickled

    def _run(self, image: TaskImage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._opened_at_home(worker.run_function(image, self.specification, args, kwargs))

    def _run_sent(self, image: TaskImage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As ``_run``, with parts in the place of arguments."""
        return self._opened_at_home(worker.run_packed(image, self.specification, list(args)))

    def _opened_at_home(self, result: Any) -> Any:
        """In the submitting process itself nobody pickles the result, so nothing else would open it."""
        return result.open() if self._submitter == SUBMITTER and isinstance(result, Sealed) else result


@lru_cache(256)
def _open_function(data: bytes) -> ImageFunction:
    return ImageFunction(*pickle.loads(data))  # noqa: S301 - inside a pickle that Parsl opened already


#: The name by which HTEX's workers find :func:`run_payload`.
RUN_PAYLOAD = f"{__name__}.run_payload"


def payload(function: ImageFunction, parts: Sequence[Any]) -> bytes:
    """A task for :func:`run_payload`: ``parts`` are its image and its packed arguments, bytes or buffers.

    HTEX's own form of a task goes three times through dill, a pickler in Python.
    """
    buffers = [PickleBuffer(part) if isinstance(part, memoryview) else part for part in parts]
    return pickle.dumps((function.pickled(), *buffers), protocol=5)


def run_payload(data: bytes) -> Any:
    """Run a task on a worker of HTEX, in the place of Parsl's ``execute_task``."""
    function, *parts = pickle.loads(data)  # noqa: S301 - as Parsl opens its own
    return _open_function(function)(*parts)


class ImageCommand(_Shipped):
    """A bash app's function: as Parsl's own, makes the command line, runs it (in the image), checks its outputs."""

    def __init__(self, function: Callable[..., str]) -> None:
        self._function = function
        self.__name__ = getattr(function, "__name__", "bash_app")
        self.__module__ = function.__module__

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCommand, (self._function,)

    def _run(self, image: TaskImage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        import parsl.app.errors as errors

        command = self._command(args, kwargs)
        output, closing = _open_stream("stdout", kwargs, 1)
        try:
            error_output, also_closing = _open_stream("stderr", kwargs, 2)
            try:
                if also_closing:
                    os.write(error_output, f"--> executable follows <--\n{command}\n--> end executable <--\n".encode())
                status = worker.run_command(image, command, output, error_output, kwargs.get("walltime"))
            finally:
                if also_closing:
                    os.close(error_output)
        finally:
            if closing:
                os.close(output)
        if status is None:
            raise errors.AppTimeout(f"App {self.__name__} exceeded walltime: {kwargs['walltime']} seconds")
        if status != 0:
            raise errors.BashExitFailure(self.__name__, status)
        missing = [each for each in kwargs.get("outputs", []) if not os.path.exists(each.filepath)]
        if missing:
            raise errors.MissingOutputs(f"Missing outputs from app {self.__name__}", missing)
        return status

    def _command(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        import parsl.app.errors as errors

        try:
            command = self._function(*args, **kwargs)
        except (AttributeError, IndexError) as error:
            raise errors.AppBadFormatting(f"App formatting failed for app '{self.__name__}' with {error!r}") from error
        if command is None:
            raise errors.BashAppNoReturn(f"Bash app '{self.__name__}' did not return a value, or returned None")
        if not isinstance(command, str):
            raise ValueError(f"Expected a str for bash_app commandline, got {type(command)}")
        return command


def _open_stream(name: str, kwargs: dict[str, Any], default: int) -> tuple[int, bool]:
    """A descriptor for a bash task's output, and whether to close it; Parsl's rules for names and modes."""
    import parsl.app.errors as errors
    from parsl.data_provider.files import File
    from parsl.utils import get_std_fname_mode

    wanted = kwargs.get(name)
    if wanted is None:
        return default, False
    path, mode = (os.fspath(wanted), "w") if isinstance(wanted, File) else get_std_fname_mode(name, wanted)
    try:
        if os.path.dirname(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, mode) as file:  # which checks the mode as Parsl would
            return os.dup(file.fileno()), True
    except Exception as error:
        raise errors.BadStdStreamFile(str(path)) from error


@id_for_memo.register(ImageFunction)
@id_for_memo.register(ImageCommand)
def _id_for_memo(function: Any, output_ref: bool = False) -> bytes:
    return repr((function.__module__, function.__name__)).encode()
