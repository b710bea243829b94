"""File trees that can be looked at: an image, the node, and the view that a task has of both.

Everything that is decided about paths is decided here on text, through :class:`Tree`, so that it can be tested
without a mount.
"""

from __future__ import annotations

import os

from udi_core.errors import LaunchError

# Enough for the 40 links that Linux follows (path_resolution(7)), and for the components between them.
_STEPS = 4096
_LINKS = 40


TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol
else:
    Protocol = object


class Tree(Protocol):
    """A file tree.  Paths are absolute and normal, and lead through no symbolic link before their last part."""

    def kind(self, path: str) -> str:
        """``"dir"``, ``"link"``, ``"file"`` (anything else), or ``""`` where nothing is or nothing can be seen."""

    def readlink(self, path: str) -> str:
        """Where a symbolic link points."""

    def names(self, path: str) -> tuple[str, ...]:
        """Names in a directory, sorted; none where it cannot be read."""

    def is_executable(self, path: str) -> bool:
        """Whether the caller may execute a regular file."""

    def head(self, path: str) -> bytes:
        """The first 4 KiB of a regular file; empty where it cannot be read."""


class DiskTree:
    """The files below a directory.  What was looked at once is not looked at again."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")
        self._kinds: dict[str, str] = {}

    def kind(self, path: str) -> str:
        """See :class:`Tree`."""
        kind = self._kinds.get(path)
        if kind is None:
            try:
                mode = os.lstat(self._root + path).st_mode & 0o170000
            except (OSError, ValueError):
                kind = ""
            else:
                kind = "dir" if mode == 0o040000 else "link" if mode == 0o120000 else "file"
            self._kinds[path] = kind
        return kind

    def readlink(self, path: str) -> str:
        """See :class:`Tree`."""
        return os.readlink(self._root + path)

    def names(self, path: str) -> tuple[str, ...]:
        """See :class:`Tree`."""
        try:
            return tuple(sorted(os.listdir(self._root + path)))
        except OSError:
            return ()

    def is_executable(self, path: str) -> bool:
        """See :class:`Tree`."""
        return os.path.isfile(self._root + path) and os.access(self._root + path, os.X_OK)

    def head(self, path: str) -> bytes:
        """See :class:`Tree`."""
        try:
            with open(self._root + path, "rb", buffering=0) as file:
                return file.read(4096)
        except OSError:
            return b""


class View:
    """An image with directories and files of the node mounted over it.

    ``mounts`` maps targets to paths of the node; "" means an empty directory.  It may change while the view is
    used.
    """

    def __init__(self, image: Tree, node: Tree, mounts: Mapping[str, str]) -> None:
        self._image = image
        self._node = node
        self._mounts = mounts
        self._real: dict[str, str] = {}  # sources, with their links followed

    def parent(self, path: str) -> str | None:
        """The target of the mount that a path lies in, itself included; None for the image."""
        while path not in self._mounts:
            path = path.rpartition("/")[0]
            if not path:
                return None
        return path

    def is_node_s(self, path: str) -> bool:
        """Whether a path lies in a directory of the node, where nothing is made unasked."""
        target = self.parent(path)
        return target is not None and self._mounts[target] != ""

    def _locate(self, path: str) -> tuple[Tree, str] | None:
        target = self.parent(path)
        if target is None:
            return self._image, path
        source = self._mounts[target]
        if not source:
            return None
        real = self._real.get(source)
        if real is None:
            real = self._real[source] = resolve(self._node, source)
        return self._node, real + path[len(target) :]

    def kind(self, path: str) -> str:
        """See :class:`Tree`.  Directories that lead to a mount are there, even if the image lacks them."""
        place = self._locate(path)
        kind = place[0].kind(place[1]) if place else "dir" if path in self._mounts else ""
        if kind in ("", "link"):
            prefix = path.rstrip("/") + "/"
            if not kind and any(target.startswith(prefix) for target in self._mounts):
                return "dir"
        return kind

    def readlink(self, path: str) -> str:
        """See :class:`Tree`."""
        place = self._locate(path)
        return place[0].readlink(place[1]) if place else ""

    def names(self, path: str) -> tuple[str, ...]:
        """See :class:`Tree`; names that only a mount adds are left out."""
        place = self._locate(path)
        return place[0].names(place[1]) if place else ()

    def is_executable(self, path: str) -> bool:
        """See :class:`Tree`."""
        place = self._locate(path)
        return place is not None and place[0].is_executable(place[1])

    def head(self, path: str) -> bytes:
        """See :class:`Tree`."""
        place = self._locate(path)
        return place[0].head(place[1]) if place else b""


def resolve(tree: Tree, path: str) -> str:
    """Follow symbolic links within a tree, as chroot(2) would, as far as the path exists.

    Raises:
        LaunchError: there are more links on the way than Linux follows.
    """
    rest, done, links = path.split("/")[::-1], "", 0
    for _ in range(_STEPS):
        if not rest:
            return done or "/"
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        here = f"{done}/{part}"
        if tree.kind(here) != "link":
            done = here
            continue
        links += 1
        if links > _LINKS:
            break
        link = tree.readlink(here)
        if link.startswith("/"):
            done = ""
        rest += link.split("/")[::-1]
    raise LaunchError(f"{path} cannot be reached", "There are too many symbolic links on the way.")


def is_below(path: str, directory: str) -> bool:
    """Whether a path is a directory or lies in it, as text."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
