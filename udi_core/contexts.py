"""What a warm start needs of :mod:`contextlib`, which imports collections and functools: 1.5 ms."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import contextmanager as contextmanager
    from contextlib import suppress as suppress
else:

    class suppress:  # noqa: N801 -- as in contextlib
        """See :class:`contextlib.suppress`."""

        def __init__(self, *kinds):
            self._kinds = kinds

        def __enter__(self):
            pass

        def __exit__(self, kind, *_):
            return kind is not None and issubclass(kind, self._kinds)

    def contextmanager(function):
        """See :func:`contextlib.contextmanager`."""

        def make(*args, **kwargs):
            return _Generated(function(*args, **kwargs))

        make.__doc__ = function.__doc__
        return make

    class _Generated:
        def __init__(self, generator):
            self._generator = generator

        def __enter__(self):
            return next(self._generator)

        def __exit__(self, kind, value, traceback):
            try:
                if kind is None:
                    next(self._generator)
                else:
                    self._generator.throw(value)
            except StopIteration as end:
                return kind is not None and end is not value
            except BaseException as error:
                if error is value:
                    return False
                raise
            raise RuntimeError("the generator did not stop")
