"""Dataclasses for modules that a warm start imports.

The standard library's decorator compiles the methods of each class when it is imported: 0.4 ms for each, and 7 ms
for the module itself and what it imports.  This one does what UDI's values need (frozen, with slots) with methods
that all classes share, in some 20 µs.  The functions of :mod:`dataclasses` work on these classes too.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:

    class _Factory:
        def __init__(self, make):
            self.make = make

    def field(*, default_factory):
        """A default that is made anew for each value."""
        return _Factory(default_factory)

    def replace(value, /, **changes):
        """A copy with other values in some fields."""
        return type(value)(**{name: getattr(value, name) for name in type(value).__slots__} | changes)

    class _Fields:
        """What :mod:`dataclasses` wants to know of a class, made when it asks."""

        def __init__(self, defaults, kw_only):
            self._defaults = defaults
            self._kw_only = kw_only
            self._made = None

        def __get__(self, instance, owner):
            if self._made is None:
                self._made = self._make(owner)
            return self._made

        def _make(self, owner):
            import dataclasses

            fields = []
            for name, kind in owner.__annotations__.items():
                default = self._defaults.get(name, dataclasses.MISSING)
                if isinstance(default, _Factory):
                    made = dataclasses.field(default_factory=default.make)
                else:
                    # A mutable default is harmless in a value that is frozen, and refused by make_dataclass.
                    made = dataclasses.field(default_factory=lambda default=default: default)
                    if default is dataclasses.MISSING:
                        made = dataclasses.field()
                fields.append((name, kind, made))
            twin = dataclasses.make_dataclass(owner.__name__, fields, frozen=True, kw_only=self._kw_only)
            return twin.__dataclass_fields__

    def dataclass(*, frozen, slots, kw_only=False):
        """The standard library's decorator, for values only: ``frozen`` and ``slots`` must be asked for."""
        if not (frozen and slots):
            raise TypeError("values are frozen and have slots: use the standard library's dataclasses for others")

        def made(cls):
            names = tuple(cls.__annotations__)
            defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
            body = {key: each for key, each in cls.__dict__.items() if key not in (*names, "__dict__", "__weakref__")}
            setters = {}

            def init(self, *args, **kwargs):
                if args:
                    if kw_only or len(args) > len(names):
                        raise TypeError(
                            f"{cls.__name__}() takes {'no' if kw_only else len(names)} positional arguments"
                        )
                    for name, given in zip(names, args):  # noqa: B905 -- shorter by intent
                        if name in kwargs:
                            raise TypeError(f"{cls.__name__}() got multiple values for argument {name!r}")
                        kwargs[name] = given
                for name, put in setters.items():
                    if name in kwargs:
                        put(self, kwargs.pop(name))
                    elif name in defaults:
                        default = defaults[name]
                        put(self, default.make() if type(default) is _Factory else default)
                    else:
                        raise TypeError(f"{cls.__name__}() needs the argument {name!r}")
                if kwargs:
                    raise TypeError(f"{cls.__name__}() got an unexpected argument {next(iter(kwargs))!r}")

            body |= {
                "__slots__": names,
                "__match_args__": () if kw_only else names,
                "__init__": init,
                "__dataclass_fields__": _Fields(defaults, kw_only),
                "__setattr__": _frozen,
                "__delattr__": _frozen,
                "__eq__": _equal,
                "__hash__": _hash,
                "__repr__": body.get("__repr__", _repr),
                "__reduce__": _reduce,
                "_setters": setters,
            }
            result = type(cls)(cls.__name__, cls.__bases__, body)
            setters.update((name, result.__dict__[name].__set__) for name in names)
            return result

        return made

    def _state(self):
        return tuple([getattr(self, name) for name in self.__slots__])

    def _frozen(self, name, *_):
        raise AttributeError(f"cannot change field {name!r}")

    def _equal(self, other):
        return _state(self) == _state(other) if other.__class__ is self.__class__ else NotImplemented

    def _hash(self):
        return hash(_state(self))

    def _repr(self):
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"

    def _restore(cls, state):
        value = cls.__new__(cls)
        for put, each in zip(cls._setters.values(), state, strict=True):
            put(value, each)
        return value

    def _reduce(self):
        return _restore, (type(self), _state(self))


def names(kind: type) -> tuple[str, ...]:
    """The names of a class's fields, in order: :func:`dataclasses.fields` without its module."""
    return tuple(kind.__slots__)  # type: ignore[attr-defined]
