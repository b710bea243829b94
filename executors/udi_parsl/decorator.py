"""The decorator: ``@image("docker:…")`` above an app."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from parsl.app.app import AppBase
from parsl.app.bash import BashApp
from parsl.app.python import PythonApp

from udi_core import MAGIC, NotPortable, UsageError, Volume, specify
from udi_parsl.images import KEYWORD, RESOLVER, Choice, Surroundings, TaskImage, Wish, task_image
from udi_parsl.results import SUBMITTER
from udi_parsl.shipped import ImageCommand, ImageFunction

App = TypeVar("App", bound=AppBase)
_defaults = threading.local()
_PORTABLE = "Define it by def in a file, import what it needs inside it, and pass the rest as arguments."


def image(
    reference: str | Mapping[str, str],
    *,
    volumes: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    setup: str = "",
    workdir: str = "",
    python: str = "",
    platform: str | None = None,
    variants: Sequence[str] = (),
) -> Callable[[App], App]:
    """Run every task of an app inside an image; the outermost decorator.

    Above a ``@join_app`` it is the default for the apps that this one calls and that name no image of their own.

    Args:
        reference: an image reference, or a mapping of node kinds (archspec's names, ``v2`` … ``v4``, ``default``)
            to references; the choice is made on the node.
        volumes: ``SRC:DST[:ro]`` each.
        env: variables, above the image's own.
        setup: shell lines, run once before an agent starts and before each bash task.
        workdir: directory of the tasks; default: the worker's, where the image shows it.
        python: the image's interpreter, if it is not the ``python3`` on its PATH.
        platform: ``os/architecture[/variant]``; default: the submitting machine's.
        variants: x86-64 levels (``("v2", "v4")``) that nodes have, beside the submitting machine's own.

    Raises:
        UsageError: the reference, the platform or a volume is malformed, or what is decorated is not an app.
    """
    wish = Wish.parse(reference, platform, tuple(variants))
    around = Surroundings(
        volumes=tuple(str(Volume.parse(each)) for each in volumes),
        env=dict(env or {}),
        setup=setup,
        workdir=workdir,
        python=python,
    )

    def decorate(app: App) -> App:
        if isinstance(app, (_ImagePythonApp, _ImageBashApp)):
            raise UsageError(f"The app {app.__name__!r} has an image already", "", "Decorate it with @image once.")
        if isinstance(app, BashApp):
            return _ImageBashApp(app, wish, around)  # type: ignore[return-value]
        if isinstance(app, PythonApp):
            if app.join:
                return _JoinApp(app, wish, around)  # type: ignore[return-value]
            return _ImagePythonApp(app, wish, around)  # type: ignore[return-value]
        raise UsageError(
            f"@image must stand above @python_app, @bash_app or @join_app, not {type(app).__name__}",
            "Decorators apply from the bottom up: the app must be made first.",
            '@image("docker:…")\n@python_app\ndef …',
        )

    return decorate


class _Images:
    """What the decorated apps share: which image, and the future of it that a task depends on."""

    _wish: Wish
    _around: Surroundings
    #: What was resolved for a wish, beside the future that it was resolved from.
    _ready: dict[Wish, tuple[Any, Any]]

    def _future(self, kwargs: dict[str, Any], specification: dict[str, Any] | None) -> Any:
        """The value of :data:`KEYWORD` for one call."""
        given = kwargs.get(KEYWORD)
        if isinstance(given, (TaskImage, Future)):
            return given
        wish = Wish.parse(given, self._wish.platform, self._wish.variants) if given is not None else self._wish
        choices = RESOLVER.choices(wish)
        known = self._ready.get(wish)
        if known is None or known[0] is not choices:
            known = self._ready[wish] = choices, resolved(wish, self._around, specification)
        if isinstance(known[1], Future) and known[1].done():
            del self._ready[wish]
        return known[1]


class ImageFuture(Future[TaskImage]):
    """A future of a task's image; Parsl shows its ``repr`` when the task cannot run, so that says why.

    It cannot be cancelled: all tasks of the image wait for it.
    """

    def __init__(self, wish: Wish) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self._names = ", ".join(text for _, text in wish.references)

    def __repr__(self) -> str:
        error = self.exception(timeout=0) if self.done() else None
        return f"the image {self._names}" + (f": {error}" if error else "")


def resolved(wish: Wish, around: Surroundings, specification: dict[str, Any] | None) -> Any:
    """A TaskImage if the images are known, else a future of it.

    A future is a dependency to Parsl: the task waits for the pull without a worker, and fails as
    ``DependencyError`` if the pull does.
    """
    choices = RESOLVER.choices(wish)
    if choices.done() and choices.exception() is None:
        _check(specification, choices.result(), around)
        return task_image(wish, around, choices.result())
    future = ImageFuture(wish)

    def forward(done: Future[tuple[Choice, ...]]) -> None:
        try:
            _check(specification, done.result(), around)
            future.set_result(task_image(wish, around, done.result()))
        except Exception as error:
            future.set_exception(error)

    choices.add_done_callback(forward)
    return future


def _check(specification: dict[str, Any] | None, choices: tuple[Choice, ...], around: Surroundings) -> None:
    """Refuse, before it is sent, a function that an image's Python cannot run."""
    if specification is None or around.python:
        return
    for each in choices:
        if not each.python:
            raise UsageError(
                f"The image has no Python 3, which the python app {specification['name']!r} needs",
                f"Image {each.digest[:19]} for {each.kind} nodes.",
                "Use a bash app, name an interpreter by python=, or choose another image.",
            )
        if each.magic != MAGIC.hex() and specification["source"] is None:
            raise UsageError(
                f"The app {specification['name']!r} cannot run on the image's Python {each.version}",
                f"Bytecode of this Python would crash there, and as source it cannot go: {specification['problem']}.",
                _PORTABLE,
            )


def _settings(app: AppBase) -> dict[str, Any]:
    """What Parsl's decorator was given, for an app that takes the place of the one it made."""
    return {
        "data_flow_kernel": app.data_flow_kernel,
        "cache": app.cache,
        "executors": app.executors,
        "ignore_for_cache": app.ignore_for_cache,
    }


class _ImagePythonApp(_Images, PythonApp):
    def __init__(self, app: PythonApp, wish: Wish, around: Surroundings) -> None:
        function = inspect.unwrap(app.func)
        try:
            self._specification = specify(function)
        except NotPortable as error:
            raise UsageError(f"The app {app.__name__!r} cannot be sent to an image", str(error), _PORTABLE) from error
        self._wish, self._around, self._ready = wish, around, {}
        super().__init__(function, **_settings(app))
        self.func = ImageFunction(self._specification, function.__module__, SUBMITTER)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        future = self._future(kwargs, self._specification)
        return super().__call__(*args, **{**kwargs, KEYWORD: future})


class _ImageBashApp(_Images, BashApp):
    def __init__(self, app: BashApp, wish: Wish, around: Surroundings) -> None:
        self._wish, self._around, self._ready = wish, around, {}
        super().__init__(app.func, **_settings(app))
        self.wrapped_remote_function = ImageCommand(app.func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{**kwargs, KEYWORD: self._future(kwargs, None)})


class _JoinApp(PythonApp):
    """A join app whose inner apps get its image, unless they have one."""

    def __init__(self, app: PythonApp, wish: Wish, around: Surroundings) -> None:
        super().__init__(inspect.unwrap(app.func), **_settings(app), join=True)
        _let_plain_apps_ask()
        function = self.func

        @functools.wraps(function)
        def with_default(*args: Any, **kwargs: Any) -> Any:
            before = getattr(_defaults, "image", None)
            _defaults.image = wish, around
            try:
                return function(*args, **kwargs)
            finally:
                _defaults.image = before

        self.func = with_default


def _call_default(app: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """An app without an image that is called inside a join app that has one."""
    default = getattr(_defaults, "image", None)
    if default is None or isinstance(app, (_Images, _JoinApp)) or getattr(app, "join", False):
        return original(app, *args, **kwargs)
    wish, around = default
    decorated = app.__dict__.setdefault("_udi_default", {}).get(default[0])
    if decorated is None:
        kind = _ImageBashApp if isinstance(app, BashApp) else _ImagePythonApp
        decorated = app.__dict__["_udi_default"][default[0]] = kind(app, wish, around)
    return decorated(*args, **kwargs)


@functools.cache
def _let_plain_apps_ask() -> None:
    """Let plain apps see the default image of a join app; Parsl makes them, so its classes must ask."""
    for kind in (PythonApp, BashApp):
        setattr(kind, "__call__", functools.partialmethod(_call_default, kind.__call__))  # noqa: B010 - mypy forbids it
