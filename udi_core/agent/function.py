"""Describe a function so that an agent on any Python can make it again.

Bytecode runs only on the Python that made it (another minor version does not fail, it crashes), so a specification
carries the source too, with everything that the source needs: helpers of the same module, modules by name, and plain
values.  What cannot go that way is named in ``problem``, so that it can be refused before a task is sent.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib.util
import inspect
import io
import pickle
import pickletools
import textwrap
import types
from collections.abc import Callable
from typing import Any

from udi_core.agent.arguments import by_value

#: This Python's bytecode version.
MAGIC = importlib.util.MAGIC_NUMBER

_Source = dict[str, Any]


class NotPortable(Exception):
    """The function cannot be sent as source; the message says why."""


def specify(function: Callable[..., Any]) -> dict[str, Any]:
    """The specification of a function: plain values only.

    Keys: ``id`` (equal for equal functions), ``name``, ``module``, ``magic``, ``bytecode`` (by cloudpickle, or None),
    ``source`` (or None), ``problem`` (why there is no source, or "").
    """
    function = inspect.unwrap(function)
    name = getattr(function, "__name__", type(function).__name__)
    bytecode, bytecode_problem = None, ""
    try:
        bytecode = _by_value(function)
    except Exception as error:
        bytecode_problem = f"cloudpickle: {error}"
    source, problem = None, ""
    try:
        source = _source(function, set())
    except NotPortable as error:
        problem = str(error)
    if bytecode is None and source is None:
        raise NotPortable(f"{name}: {problem}; {bytecode_problem}")
    state = hashlib.sha256(pickle.dumps((MAGIC, bytecode, source), protocol=4))
    return {
        "id": state.hexdigest(),
        "name": name,
        "module": function.__module__,
        "magic": MAGIC,
        "bytecode": bytecode,
        "source": source,
        "problem": problem,
    }


def _by_value(function: Callable[..., Any]) -> bytes:
    """The function with its code: by reference it would need its module in the image."""
    data: bytes = by_value(function, (function.__module__,), 4)[0]
    return data


def _source(function: Any, seen: set[Any]) -> _Source:
    if not isinstance(function, (types.FunctionType, type)):
        raise NotPortable(f"{function!r} is no plain function")
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        raise NotPortable(f"the source of {function.__name__!r} cannot be found") from None
    try:
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except SyntaxError:
        raise NotPortable(f"the source of {function.__name__!r} is part of a larger expression") from None
    node = tree.body[0]
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or len(tree.body) != 1:
        raise NotPortable(f"{function.__name__!r} is a lambda or a coroutine, and not defined by def")
    if seen and node.decorator_list:
        # The app's own decorators are Parsl's; a helper's belong to what it does.
        raise NotPortable(f"{function.__name__!r} has a decorator")
    if isinstance(function, type) and function.__bases__ != (object,):
        raise NotPortable(f"the class {function.__name__!r} has a base class")
    node.decorator_list = []
    if isinstance(node, ast.FunctionDef):
        _drop_annotations(node)
    seen = seen | {function}
    values = _used(function)
    return {
        "name": node.name,
        "module": function.__module__,
        "text": ast.unparse(ast.fix_missing_locations(tree)),
        "file": f"<udi {function.__module__}>",
        "line": first,
        "globals": {name: _portable(name, value, function, seen) for name, value in values.items()},
    }


def _drop_annotations(node: ast.FunctionDef) -> None:
    """Annotations are evaluated when a function is defined, and may name what only the submit side has."""
    node.returns = None
    arguments = node.args
    for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]:
        if each is not None:
            each.annotation = None


def _used(function: Any) -> dict[str, Any]:
    """The globals and closure variables that a function, or a class's methods, use; nested functions included."""
    found: dict[str, Any] = {}
    functions = [function]
    if isinstance(function, type):
        functions = [each for each in vars(function).values() if isinstance(each, types.FunctionType)]
    for each in functions:
        names = _global_names(each.__code__)
        found.update({name: each.__globals__[name] for name in names if name in each.__globals__})
        for name, cell in zip(each.__code__.co_freevars, each.__closure__ or (), strict=True):
            if name == "__class__":
                continue
            try:
                found[name] = cell.cell_contents
            except ValueError:
                raise NotPortable(f"the variable {name!r} of {each.__name__!r} has no value yet") from None
    # Defaults are evaluated where the function is defined, by names of its module.
    if isinstance(function, types.FunctionType) and (function.__defaults__ or function.__kwdefaults__):
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        node = tree.body[0]
        if isinstance(node, ast.FunctionDef):
            for default in [*node.args.defaults, *(each for each in node.args.kw_defaults if each is not None)]:
                for name in {each.id for each in ast.walk(default) if isinstance(each, ast.Name)}:
                    if name in function.__globals__:
                        found[name] = function.__globals__[name]
    return found


def _global_names(code: types.CodeType) -> set[str]:
    names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            names |= _global_names(each)
    return names


def _portable(name: str, value: Any, user: Any, seen: set[Any]) -> tuple[str, Any]:
    if isinstance(value, types.ModuleType):
        return "module", value.__name__
    if isinstance(value, (types.FunctionType, type)):
        if value in seen:
            if value is user:
                return "self", None
            return "function", {"name": value.__name__, "module": value.__module__, "again": True}
        if value.__module__ == user.__module__ or value.__module__ == "__main__":
            return "function", _source(value, seen)
        return "member", (value.__module__, value.__qualname__)
    if isinstance(value, types.BuiltinFunctionType) and value.__module__:
        return "member", (value.__module__, value.__name__)
    try:
        data = pickle.dumps(value, protocol=4)
    except Exception as error:
        raise NotPortable(f"the variable {name!r} cannot be pickled: {error}") from None
    for module in _modules(data):
        if module in ("__main__", user.__module__):
            raise NotPortable(f"the variable {name!r} is an object of a class of {module}, which the image lacks")
    return "value", data


def _modules(data: bytes) -> set[str]:
    """The modules that a pickle names."""
    found: set[str] = set()
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
        if isinstance(argument, str):
            strings.append(argument)
        if opcode.name == "STACK_GLOBAL":
            found.update(strings)
        elif opcode.name == "GLOBAL":
            found.add(str(argument).partition(" ")[0])
    return found
