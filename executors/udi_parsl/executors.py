"""Executors that know images: arguments pass their workers unopened, and every task may have an image by default."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.serialize.errors import SerializationError

from udi_core import MAGIC, pack, specify
from udi_parsl.image import KEYWORD, ImageCommand, ImageFunction
from udi_parsl.images import RESOLVER, Surroundings, TaskImage, Wish, task_image
from udi_parsl.results import SUBMITTER
from udi_parsl.worker import Packed

_KEPT = (KEYWORD,)


class UdiExecutorMixin:
    """Put it before any executor class: ``class Mine(UdiExecutorMixin, ThreadPoolExecutor)``.

    Args:
        image: reference (or mapping of node kinds) for tasks that name none; None leaves those alone.
        image_options: further arguments of :func:`udi_parsl.image`, for that default.
    """

    def __init__(
        self,
        *args: Any,
        image: str | Mapping[str, str] | None = None,
        image_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        options = dict(image_options or {})
        platform, variants = options.pop("platform", None), tuple(options.pop("variants", ()))
        self._udi_wish = None if image is None else Wish.parse(image, platform, variants)
        self._udi_around = Surroundings(**options)
        self._udi_image: TaskImage | None = None

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Submit a task; its arguments are packed for the image's agent, so that the worker never opens them.

        The default image is pulled by the first task that needs it.
        """
        image = kwargs.get(KEYWORD)
        if image is None and self._udi_wish is not None:
            func, args, kwargs = self._whole(func, args, kwargs)
        elif isinstance(image, TaskImage) and isinstance(func, ImageFunction):
            args, kwargs = _packed(func, image, args, kwargs)
        return super().submit(func, resource_specification, *args, **kwargs)  # type: ignore[misc]

    def _whole(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """A task without an image of its own: the whole call goes into the default image."""
        if self._udi_image is None:
            assert self._udi_wish is not None
            choices = RESOLVER.choices(self._udi_wish).result()
            self._udi_image = task_image(self._udi_wish, self._udi_around, choices)
        image = self._udi_image
        if isinstance(func, ImageCommand):
            return func, args, {**kwargs, KEYWORD: image}
        command = _bash_function(func)
        if command is not None:
            return ImageCommand(command), args, {**kwargs, KEYWORD: image}
        function = ImageFunction(_specification(func), func.__module__, SUBMITTER)
        args, kwargs = _packed(function, image, args, {**kwargs, KEYWORD: image})
        return function, args, kwargs


def _bash_function(func: Callable[..., Any]) -> Callable[..., str] | None:
    """The function of a plain bash app, out of Parsl's wrappings."""
    from parsl.app.bash import remote_side_bash_executor

    inner: Any = getattr(func, "__wrapped__", None)
    if getattr(inner, "func", None) is remote_side_bash_executor:
        function: Callable[..., str] = inner.args[0]
        return function
    return None


def _specification(func: Callable[..., Any]) -> dict[str, Any]:
    known = getattr(func, "_udi_specification", None)
    if known is None:
        known = specify(func)
        with contextlib.suppress(AttributeError):
            func._udi_specification = known  # type: ignore[attr-defined]
    found: dict[str, Any] = known
    return found


def _packed(
    func: ImageFunction, image: TaskImage, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kept = {key: value for key, value in kwargs.items() if key in _KEPT}
    rest = {key: value for key, value in kwargs.items() if key not in _KEPT}
    same = all(each.magic == MAGIC.hex() for each in image.choices)
    # Protocol 5 came with Python 3.8; with several images the oldest decides.
    newest = min((int(each.version.partition(".")[2] or 8) for each in image.choices), default=8) >= 8
    module: Any = pickle
    if same:
        import cloudpickle

        module = cloudpickle
    try:
        return (Packed(pack((args, rest), module, 5 if newest else 4)),), kept
    except Exception as error:
        raise SerializationError(func.__name__) from error


class UDIHighThroughputExecutor(UdiExecutorMixin, HighThroughputExecutor):
    """HTEX whose tasks run in ``image`` by default; images of single apps and calls win.

    All other arguments are HighThroughputExecutor's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("label", "htex_udi")
        super().__init__(*args, **kwargs)
