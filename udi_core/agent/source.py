"""A recipe: the steps by which any Python makes functions and classes of the user's script again, from source.

Only what a script defines itself travels (the modules called *own* here); other modules go by name.  A recipe is a
list of plain tuples, which :mod:`udi_core.agent.in_image` replays in namespaces: one for each own module, and one for
the closure of each local function.

======== ============================================================================
import   ``space, name, module``: bind a module (``name`` is "" for a submodule)
member   ``space, name, module, qualname``: bind a module's member
value    ``space, name, pickle``: bind a value
define   ``space, file, line, text``: execute a statement
make     ``space, name, file, line, text, module, factory``: make a local function
bind     ``space, name, other space, other name``: bind what another step made
======== ============================================================================
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import linecache
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from udi_core.agent.pickling import OWN_KINDS, OwnPickler

#: The name, in its closure's namespace, of a local function itself.
MADE = ""

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_ANNOTATORS = ("typing", "dataclasses")
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


class NotPortable(Exception):
    """It cannot be sent as source; the message says why."""


class Recipe:
    """Collects steps.  ``own`` are the modules whose definitions travel."""

    def __init__(self, own: Iterable[str]) -> None:
        self.own = tuple(own)
        self.steps: list[tuple[Any, ...]] = []
        self._begun: set[tuple[str, str]] = set()
        self._ended: set[tuple[str, str]] = set()
        self._waiting: dict[tuple[str, str], list[tuple[Any, ...]]] = {}

    def function(self, function: types.FunctionType) -> tuple[str, str]:
        """Add an app's function, without its decorators, which are Parsl's; the space and name that it will have."""
        return self._local(function, strip=True)

    def named(self, module: str, name: str) -> None:
        """Add what an own module calls ``name``."""
        top = name.partition(".")[0]
        values = vars(sys.modules[module]) if module in sys.modules else {}
        if top not in values:
            raise NotPortable(f"{module}.{name} is not defined at the top of its file")
        self._place(module, top, values[top], module)

    def _place(self, space: str, name: str, value: Any, module: str) -> None:
        """Bind, in a space, what a function of ``module`` calls ``name``."""
        if (space, name) in self._begun or name in ("__name__", "__builtins__"):
            return
        self._begun.add((space, name))
        if isinstance(value, types.ModuleType):
            self._import(space, name, value, module)
        elif space == module and (text := _statement(module, name, value)) is not None:
            self._define(module, text)
        elif getattr(value, "__module__", None) in self.own and isinstance(value, OWN_KINDS):
            self._other_name(space, name, value)
        elif isinstance(value, (types.FunctionType, type)):
            if _member(value.__module__, value.__qualname__) is not value:
                raise NotPortable(f"{name!r} is made by the module {value.__module__}, which has no name for it")
            self.steps.append(("member", space, name, value.__module__, value.__qualname__))
        elif isinstance(value, types.BuiltinFunctionType) and _member(value.__module__, value.__name__) is value:
            self.steps.append(("member", space, name, value.__module__, value.__name__))
        else:
            self._value(space, name, value)
        self._end(space, name)

    def _end(self, space: str, name: str) -> None:
        self._ended.add((space, name))
        self.steps += self._waiting.pop((space, name), ())

    def _bind(self, space: str, name: str, other: str, other_name: str) -> None:
        step = ("bind", space, name, other, other_name)
        if (other, other_name) in self._ended:
            self.steps.append(step)
        else:  # a circle: it is being made
            self._waiting.setdefault((other, other_name), []).append(step)

    def _import(self, space: str, name: str, value: types.ModuleType, module: str) -> None:
        if value.__name__ in self.own:
            raise NotPortable(f"{name!r} is the module {value.__name__} itself")
        self.steps.append(("import", space, name, value.__name__))
        for text in _texts(module):
            for each in text.imported:
                if each.startswith(value.__name__ + "."):
                    self.steps.append(("import", space, "", each))

    def _define(self, module: str, text: _Statement) -> None:
        early, late = text.names()
        values = vars(sys.modules[module])
        for name in early:
            if name in values and name != text.name:
                self._place(module, name, values[name], module)
        for name in text.annotation_names():
            # Looked up by name by dataclasses; a type that only the submit side has must not stop the rest.
            value = values.get(name)
            if getattr(value, "__name__", "") in _ANNOTATORS or getattr(value, "__module__", "") in _ANNOTATORS:
                self._place(module, name, value, module)
        self.steps.append(("define", module, text.file, text.line, text.edited()))
        self._end(module, text.name)
        for name in late:
            if name in values:
                self._place(module, name, values[name], module)

    def _other_name(self, space: str, name: str, value: Any) -> None:
        """Something own that is bound by another name, or is local to a function."""
        qualname = getattr(value, "__qualname__", value.__name__)
        if _member(value.__module__, qualname) is value and (space, name) != (value.__module__, qualname):
            top = qualname.partition(".")[0]
            self.named(value.__module__, top)
            if top != qualname:
                raise NotPortable(f"{name!r} is a name for {qualname}")
            self._bind(space, name, value.__module__, top)
        elif isinstance(value, (types.FunctionType, type)):
            self._bind(space, name, *self._local(value))
        else:
            raise NotPortable(f"the source of {name!r} cannot be found")

    def _local(self, value: Any, strip: bool = False) -> tuple[str, str]:
        """Make a function or class apart from its module's names, with its closure."""
        text = _text_of(value)
        space = f"{value.__module__}:{value.__qualname__}:{text.line}"
        if (space, MADE) in self._begun:
            return space, MADE
        self._begun.add((space, MADE))
        free = dict(_closure(value))
        for name, content in free.items():
            if content is not value:
                self._place(space, name, content, value.__module__)
        if any(step[1] == space for steps in self._waiting.values() for step in steps):
            raise NotPortable(f"{text.name!r} and another local function need each other")
        parameters = [name for name in free if name != text.name]
        code = text.edited(strip=strip, parameters=parameters)
        values = vars(sys.modules[value.__module__]) if value.__module__ in sys.modules else {}
        values = getattr(value, "__globals__", values)
        early, late = _names(code)
        names = {name: values[name] for name in (*early, *late) if name in values}
        for name in early:
            if name in names:
                self._place_global(value, name, names[name], space)
        factory = ",".join(parameters) if text.indent else None
        self.steps.append(("make", space, text.name, text.file, text.line, code, value.__module__, factory))
        self._end(space, MADE)
        for name in late:
            if name in names:
                self._place_global(value, name, names[name], space)
        return space, MADE

    def _place_global(self, user: Any, name: str, value: Any, space: str) -> None:
        if value is user:
            if (user.__module__, name) not in self._begun:
                self._begun.add((user.__module__, name))
                self._bind(user.__module__, name, space, MADE)
                self._ended.add((user.__module__, name))
        else:
            self._place(user.__module__, name, value, user.__module__)

    def _value(self, space: str, name: str, value: Any) -> None:
        pickler = OwnPickler(self.own, 4)
        try:
            (data,) = pickler.parts(value)
        except Exception as error:
            raise NotPortable(f"the variable {name!r} cannot be pickled: {error}") from None
        self.found(pickler)
        self.steps.append(("value", space, name, bytes(data)))

    def found(self, pickler: OwnPickler) -> None:
        """Add what a pickle takes from own modules."""
        for each in pickler.found:
            self.named(each.__module__, getattr(each, "__qualname__", each.__name__))


class _Statement:
    """A definition, or an assignment, in a file."""

    def __init__(self, text: _Text, node: ast.stmt, name: str) -> None:
        self._text, self._node, self.name = text, node, name
        self.file, self.indent = text.file, node.col_offset
        self._decorated = min([each.lineno for each in getattr(node, "decorator_list", ())] + [node.lineno])
        self.line = self._decorated

    def edited(self, *, strip: bool = False, parameters: list[str] | None = None) -> str:
        """The statement with its lines where they were, from ``line`` on.

        Annotations are strings in classes and None in functions: evaluated, they may name what only this side has.
        ``strip`` leaves its own decorators out; with ``parameters``, an indented statement is the body of a function
        ``udi_factory`` on the line before.
        """
        end = self._node.end_lineno or self._node.lineno
        lines = [line.encode() for line in self._text.lines[self._decorated - 1 : end]]
        if strip:
            for number in range(self._node.lineno - self._decorated):
                lines[number] = b"\n"
        for annotation, text in sorted(_annotations(self._node), key=lambda each: -each[0].col_offset):
            if annotation.lineno != annotation.end_lineno:
                raise NotPortable(f"{self.name!r} has an annotation of several lines")
            number = annotation.lineno - self._decorated
            start, stop = annotation.col_offset, annotation.end_col_offset
            lines[number] = lines[number][:start] + text.encode() + lines[number][stop:]
        body = b"".join(lines).decode()
        if not self.indent:
            return body
        margin = self._text.lines[self._node.lineno - 1][: self.indent]
        head = f"def udi_factory({', '.join(parameters or ())}):\n"
        return f"{head}{body.rstrip()}\n{margin}return {self.name}\n"

    def names(self) -> tuple[list[str], list[str]]:
        return _names(self.edited())

    def annotation_names(self) -> list[str]:
        if not isinstance(self._node, ast.ClassDef):
            return []
        expressions = [annotation for annotation, _ in _annotations(self._node)]
        return [each.id for node in expressions for each in ast.walk(node) if isinstance(each, ast.Name)]


class _Text:
    """A source file, parsed."""

    def __init__(self, file: str, lines: list[str]) -> None:
        self.file, self.lines = file, lines
        self._tree = ast.parse("".join(lines))
        self.bindings: dict[str, list[ast.stmt]] = {}
        self.imported: list[str] = []
        for each in _top(self._tree.body):
            for name in _bound(each):
                self.bindings.setdefault(name, []).append(each)
            if isinstance(each, ast.Import):
                self.imported += [alias.name for alias in each.names]

    def at(self, name: str, line: int) -> _Statement | None:
        """The definition of a name that begins, with its decorators, on a line."""
        for node in ast.walk(self._tree):
            if isinstance(node, _Definition) and node.name == name:
                statement = _Statement(self, node, name)
                if statement.line == line:
                    return statement
        return None

    def classes(self, qualname: str) -> list[_Statement]:
        """The classes of a qualified name."""
        found = (node for name, node in _qualified(self._tree, "") if name == qualname)
        return [_Statement(self, node, node.name) for node in found]


def _qualified(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.ClassDef):
            yield prefix + each.name, each
            yield from _qualified(each, f"{prefix}{each.name}.")
        elif isinstance(each, _Definition):
            yield from _qualified(each, f"{prefix}{each.name}.<locals>.")
        else:
            yield from _qualified(each, prefix)


def _top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those in its ``if`` and ``try`` included."""
    for each in body:
        yield each
        if not isinstance(each, _Definition):
            for name in ("body", "orelse", "finalbody"):
                yield from _top(getattr(each, name, []))
            for handler in getattr(each, "handlers", []):
                yield from _top(handler.body)


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, _Definition):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    stored = (each for target in targets if target for each in ast.walk(target) if isinstance(each, ast.Name))
    names = [each.id for each in stored if isinstance(each.ctx, ast.Store)]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    return names


def _annotations(node: ast.stmt) -> Iterator[tuple[ast.expr, str]]:
    """Annotations in a statement, each with what takes its place."""
    for each in ast.walk(node):
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = each.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            for annotation in [each.returns, *(argument.annotation for argument in named if argument)]:
                if annotation is not None:
                    yield annotation, "None"
        elif isinstance(each, ast.AnnAssign):
            text = ast.unparse(each.annotation)
            yield each.annotation, text if isinstance(each.annotation, ast.Constant) else repr(text)


@functools.lru_cache(64)
def _parsed(file: str, lines: tuple[str, ...]) -> _Text | None:
    try:
        return _Text(file, list(lines))
    except SyntaxError:
        return None


def _texts(module: str) -> list[_Text]:
    """The sources of a module: its file, or the cells of a notebook, the latest first."""
    file = getattr(sys.modules.get(module), "__file__", None)
    cells = [name for name in linecache.cache if module == "__main__" and not name.startswith("<frozen")]
    files = [file] if file else [name for name in reversed(cells) if "ipykernel" in name or name.startswith("<")]
    texts = [_parsed(each, tuple(linecache.getlines(each))) for each in files]
    return [each for each in texts if each is not None]


def _statement(module: str, name: str, value: Any) -> _Statement | None:
    """The statement by which a module defines a name, if it is of a kind that travels as source."""
    inner = inspect.unwrap(value) if callable(value) else value
    if isinstance(inner, types.FunctionType) and inner.__globals__ is vars(sys.modules.get(module, types)):
        text = _text(inner.__code__)
        found = text and text.at(name, inner.__code__.co_firstlineno)
        if found and not found.indent and inner.__qualname__ == name:
            return found
    for each in _texts(module):
        statements = each.bindings.get(name, [])
        if len(statements) > 1 and isinstance(statements[-1], _Definition):
            raise NotPortable(f"{name!r} is defined more than once")
        if len(statements) == 1:
            node = statements[0]
            # A class, what a decorator made of a function, or a class, type variable or lambda made by an assignment.
            travels = isinstance(node, _Definition) or (isinstance(node, ast.Assign) and _assigned(name, value))
            if travels and not node.col_offset:
                return _Statement(each, node, name)
            return None
    return None


def _assigned(name: str, value: Any) -> bool:
    return (isinstance(value, OWN_KINDS) and value.__name__ == name) or (
        isinstance(value, types.FunctionType) and value.__name__ == "<lambda>"
    )


def _text_of(value: Any) -> _Statement:
    """The definition of a function or a class, wherever it stands."""
    name = value.__name__
    if name == "<lambda>":
        raise NotPortable("it is a lambda, and not defined by def")
    if isinstance(value, type):
        found = [each for text in _texts(value.__module__) for each in text.classes(value.__qualname__)]
        if len(found) > 1:
            raise NotPortable(f"{name!r} is defined more than once")
        if found:
            return found[0]
    else:
        text = _text(value.__code__)
        definition = text and text.at(name, value.__code__.co_firstlineno)
        if definition:
            return definition
    raise NotPortable(f"the source of {name!r} cannot be found")


def _text(code: types.CodeType) -> _Text | None:
    lines = tuple(linecache.getlines(code.co_filename))
    return _parsed(code.co_filename, lines) if lines else None


def _closure(value: Any) -> Iterator[tuple[str, Any]]:
    functions = [value]
    if isinstance(value, type):
        functions = [each for each in vars(value).values() if isinstance(each, types.FunctionType)]
    for each in functions:
        for name, cell in zip(each.__code__.co_freevars, each.__closure__ or (), strict=True):
            if name == "__class__":
                continue
            try:
                yield name, cell.cell_contents
            except ValueError:
                raise NotPortable(f"the variable {name!r} of {each.__name__!r} has no value yet") from None


def _names(text: str) -> tuple[list[str], list[str]]:
    """The module's names that a statement needs when it is executed, and those that its functions need when called."""
    early: dict[str, None] = {}
    late: dict[str, None] = {}

    def visit(code: types.CodeType, now: bool) -> None:
        found = early if now else late
        loads = (each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
        found.update(dict.fromkeys(loads))
        for each in code.co_consts:
            if isinstance(each, types.CodeType):
                is_class = not each.co_flags & inspect.CO_OPTIMIZED
                visit(each, now and (is_class or each.co_name in _COMPREHENSIONS or each.co_name == "udi_factory"))

    visit(compile(text, "<udi>", "exec", dont_inherit=True), True)
    return list(early), [name for name in late if name not in early]


def _member(module: str | None, qualname: str) -> Any:
    found: Any = sys.modules.get(module or "")
    for each in qualname.split("."):
        found = getattr(found, each, None)
    return found
