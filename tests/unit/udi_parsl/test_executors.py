"""What executors of ours hand on in the place of a task."""

from __future__ import annotations

import pickle
from typing import Any

import dill
import pytest
from parsl.app.bash import BashApp
from parsl.app.errors import wrap_error
from parsl.app.python import PythonApp, timeout
from udi_parsl.executors import UdiExecutorMixin
from udi_parsl.images import Choice, TaskImage, frozen
from udi_parsl.shipped import ImageCommand, ImageFunction

from udi_core import MAGIC

CHOICE = Choice(
    kind="default",
    digest="sha256:" + "a" * 64,
    python="/usr/bin/python3",
    version="3.11",
    magic=MAGIC.hex(),
    shell="sh",
)
IMAGE = TaskImage(reference="docker:lab/reco:1", store="/store", choices=(CHOICE,))


class Recorder:
    def __init__(self) -> None:
        self.tasks: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def submit(self, func: Any, resource_specification: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.tasks.append((func, args, kwargs))


class Executor(UdiExecutorMixin, Recorder):
    pass


def double(value: int) -> int:
    return 2 * value


def command(value: int, stdout: str = "") -> str:
    return f"echo {value}"


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Executor:
    made = Executor(image="docker:lab/reco:1")
    monkeypatch.setattr(made, "_default_image", lambda: IMAGE)
    return made


def test_a_plain_python_app_is_prepared_once_for_all_its_tasks(executor: Executor) -> None:
    app = PythonApp(double)
    for value in (1, 2):
        executor.submit(app.func, {}, value)
    (first, arguments, rest), (second, _, _) = executor.tasks
    assert isinstance(first, ImageFunction) and first is second and first.specification["name"] == "double"
    assert not double.__dict__, "cloudpickle would send what is there along with it"
    assert rest == {} and arguments[:2] == (frozen(IMAGE), b"") and pickle.loads(arguments[2]) == ((1,), {})


def test_a_callable_that_is_never_twice_the_same(executor: Executor) -> None:
    class Double:
        __hash__ = None  # type: ignore[assignment]
        __name__ = "double"

        def __call__(self, value: int) -> int:
            return 2 * value

    executor.submit(Double(), {}, 1)
    assert executor.tasks[0][0].specification["name"] == "double"


def test_a_plain_bash_app_is_prepared_once_and_keeps_its_arguments(executor: Executor) -> None:
    app = BashApp(command)
    for value in (1, 2):
        executor.submit(app.wrapped_remote_function, {}, value, stdout="out")
    (first, arguments, rest), (second, _, _) = executor.tasks
    assert isinstance(first, ImageCommand) and first is second
    assert arguments == (frozen(IMAGE), 1) and rest == {"stdout": "out"}


def test_wrappers_of_parsls_stay_around_what_is_shipped(executor: Executor) -> None:
    whole = timeout(wrap_error(double), 5)
    executor.submit(whole, {}, 1)
    (func, _, _) = executor.tasks[0]
    assert func.__code__ is whole.__code__ and isinstance(func.__wrapped__, ImageFunction)
    assert whole(1) == 2, "the one that was handed in is as before"
    assert dill.loads(dill.dumps(func)).__wrapped__.specification == func.__wrapped__.specification


def test_images_of_apps_win_and_without_a_default_plain_apps_stay_plain(executor: Executor) -> None:
    own = TaskImage(reference="docker:lab/own:1", store="/store", choices=(CHOICE,))
    shipped = executor.tasks
    executor.submit(PythonApp(double).func, {}, 1)
    executor.submit(shipped[0][0], {}, 1, udi_image=own)
    assert shipped[1][1][0] == frozen(own)
    plain = Executor()
    plain.submit(double, {}, 1)
    assert plain.tasks == [(double, (1,), {})]
