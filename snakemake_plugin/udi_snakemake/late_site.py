"""Makes up for ``python -S``: site runs when the first module is missed that is not in the standard library.

A warm start needs none, and saves site's time (a quarter of it); a pull needs many, and does not notice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _LateSite:
    """The last of the finders: asked for what no other has found."""

    def __init__(self) -> None:
        self._done = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._done or path is not None:
            return None
        self._done = True
        import site

        site.main()
        return PathFinder.find_spec(name, path, target)


def install() -> None:
    """Have the interpreter ask; for a process that was started with ``-S``."""
    sys.meta_path.append(_LateSite())
