"""Executors that know images: arguments pass their workers unopened, and every task may have an image by default."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from parsl.app.errors import wrap_error
from parsl.executors import HighThroughputExecutor
from parsl.serialize.errors import SerializationError

from udi_core import MAGIC, NotPortable, pack_arguments, specify
from udi_parsl.images import KEYWORD, RESOLVER, Surroundings, TaskImage, Wish, frozen, same_python, task_image
from udi_parsl.results import SUBMITTER
from udi_parsl.shipped import RUN_PAYLOAD, ImageCommand, ImageFunction, payload

# Beside the functions and not in their attributes, which cloudpickle would send into images.
_KNOWN: weakref.WeakKeyDictionary[Any, ImageFunction | ImageCommand] = weakref.WeakKeyDictionary()
_WRAPS_ERRORS = wrap_error(len).__code__
# Keywords for the worker, not for the task.
_KEPT = (KEYWORD, "_parsl_monitoring")


class NotSent(SerializationError):
    """A task that an image's Python cannot be given.

    Attributes:
        what: the app, or its arguments.
    """

    def __init__(self, what: str, function: str, reason: Exception) -> None:
        super().__init__(function)
        self.what, self.reason = what, reason

    def __str__(self) -> str:
        return f"{self.what} {self.fname!r} cannot be sent to its image: {self.reason}"


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
            image = kwargs[KEYWORD] = self._default_image()
            func = _replace_innermost(func, _in_image)
        inner = inspect.unwrap(func)
        if isinstance(image, TaskImage) and isinstance(inner, ImageFunction):
            parts, kept = _packed(inner, image, args, kwargs)
            return self._submit_packed(func, resource_specification, parts, kept)
        if isinstance(image, TaskImage) and isinstance(inner, ImageCommand):
            args = frozen(image), *args
            del kwargs[KEYWORD]
        return super().submit(func, resource_specification, *args, **kwargs)  # type: ignore[misc]

    def _submit_packed(
        self, func: Any, resource_specification: dict[str, Any], parts: list[Any], kept: dict[str, Any]
    ) -> Any:
        """Submit a task whose arguments are packed; the image and they take the place of its arguments."""
        return super().submit(func, resource_specification, *map(bytes, parts), **kept)  # type: ignore[misc]

    def _default_image(self) -> TaskImage:
        if self._udi_image is None:
            assert self._udi_wish is not None
            choices = RESOLVER.choices(self._udi_wish).result()
            self._udi_image = task_image(self._udi_wish, self._udi_around, choices)
        return self._udi_image


def _replace_innermost(func: Any, make: Callable[[Any], Any]) -> Any:
    """A function like ``func`` in which what its wrappers (Parsl's monitoring, walltime) call is replaced."""
    inner = getattr(func, "__wrapped__", None)
    if inner is None:
        return make(func)
    replacement = _replace_innermost(inner, make)
    if func.__code__ is _WRAPS_ERRORS:  # which what is shipped does itself
        return replacement
    # functools.wraps leaves what it wraps in the wrapper's closure too, and that is what is called.
    cells = tuple(
        types.CellType(replacement) if cell.cell_contents is inner else cell for cell in func.__closure__ or ()
    )
    copy = types.FunctionType(func.__code__, func.__globals__, func.__name__, func.__defaults__, cells)
    copy.__kwdefaults__ = func.__kwdefaults__
    copy.__dict__.update(func.__dict__, __wrapped__=replacement)
    return copy


def _in_image(func: Any) -> Any:
    """What runs a plain app's function in an image; made once for each, so that Parsl pickles it once."""
    if isinstance(func, (ImageFunction, ImageCommand)):
        return func
    try:
        known = _KNOWN.get(func)
        if known is None:
            known = _KNOWN[func] = _shipped(func)
    except TypeError:  # a callable that cannot be looked up
        return _shipped(func)
    return known


def _shipped(func: Any) -> ImageFunction | ImageCommand:
    from parsl.app.bash import remote_side_bash_executor

    if getattr(func, "func", None) is remote_side_bash_executor:
        return ImageCommand(func.args[0])
    try:
        return ImageFunction(specify(func), func.__module__, SUBMITTER)
    except NotPortable as error:
        raise NotSent("The app", getattr(func, "__name__", str(func)), error) from error


def _packed(
    func: ImageFunction, image: TaskImage, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The image and a task's arguments as bytes and buffers, and the keywords that are for the worker."""
    kept = {key: value for key, value in kwargs.items() if key.startswith(_KEPT)}
    rest = {key: value for key, value in kwargs.items() if key not in kept}
    same = same_python(image, MAGIC)
    # Protocol 5 came with Python 3.8; with several images the oldest decides.
    newest = min((int(each.version.partition(".")[2] or 8) for each in image.choices), default=8) >= 8
    try:
        parts = pack_arguments((args, rest), func.specification, same=same, protocol=5 if newest else 4)
    except Exception as error:
        raise NotSent("The arguments of", func.__name__, error) from error
    kept.pop(KEYWORD, None)
    return [frozen(image), *parts], kept


class UDIHighThroughputExecutor(UdiExecutorMixin, HighThroughputExecutor):
    """HTEX whose tasks run in ``image`` by default; images of single apps and calls win.

    All other arguments are HighThroughputExecutor's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("label", "htex_udi")
        super().__init__(*args, **kwargs)

    def _submit_packed(
        self, func: Any, resource_specification: dict[str, Any], parts: list[Any], kept: dict[str, Any]
    ) -> Any:
        if not isinstance(func, ImageFunction):  # Parsl's monitoring or walltime is around it
            return super()._submit_packed(func, resource_specification, parts, kept)
        self.validate_resource_spec(resource_specification)
        context: dict[str, Any] = {"task_executor": {"f": RUN_PAYLOAD}}
        if resource_specification:
            context["resource_spec"] = resource_specification
        return self.submit_payload(context, payload(func, parts))
