"""A task's arguments on their way to an agent."""

from __future__ import annotations

import pickle
from typing import Any

from udi_core.agent.pickling import OwnPickler, by_value, own_modules


def pack_arguments(value: Any, specification: dict[str, Any], *, same: bool, protocol: int) -> list[Any]:
    """The parts of pickled arguments: a recipe of what they need (or nothing), the pickle, its buffers.

    Args:
        same: the agent's Python runs this one's bytecode, so that classes and functions may go by value.
        protocol: the newest that the agent reads.

    Raises:
        NotPortable: they hold something of the script that cannot be sent as source.
        Exception: whatever pickle raises.
    """
    own = own_modules(specification["module"])
    pickler = OwnPickler(own, protocol)
    try:
        parts = pickler.parts(value)
    except Exception:
        if not same:
            raise
        return [b"", *by_value(value, own, protocol)]
    if not pickler.found:
        return [b"", *parts]
    if same:
        return [b"", *by_value(value, own, protocol)]
    from udi_core.agent.source import Recipe  # 10 ms of a worker's first task, and hardly any needs it

    recipe = Recipe(own)
    recipe.found(pickler)
    return [pickle.dumps(recipe.steps, protocol=4), *parts]
