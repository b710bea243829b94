"""Merge layers by doing what they say, lowest first, in a file tree that exists in memory only.

This is what unpacking does, with its order and its symlinks, but an inode remembers which entry of which layer it
came from in the place of its content.  Then the layers are read once more, and the entries that are left are
emitted under the names that they ended up with.  The rules are those of umoci-unpack(1), with securejoin's way to
follow symlinks inside a root.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from udi_core import tarheader
from udi_core.changeset import OPAQUE, WHITEOUT, Changes, FlattenReport, show
from udi_core.errors import CorruptImage, HostileImage
from udi_core.tarheader import DIRECTORY, LINK, SYMLINK
from udi_core.tarstream import Entry

_MAX_SYMLINKS = 255  # as securejoin has it


@dataclass(slots=True, eq=False)
class _Inode:
    """One file, directory or anything else.

    Attributes:
        source: layer and ordinal of the entry that it came from; None for a directory that none declares.
        children: by name, for a directory; None for anything else.
        link: target of a symlink, else b"".
    """

    source: tuple[int, int] | None = None
    children: dict[bytes, _Inode] | None = None
    link: bytes = b""


def replay(changes: Changes) -> FlattenReport:
    """Merge the layers, reading each twice.

    Raises:
        CorruptImage, HostileImage, UnsupportedImage: see :func:`udi_core.flatten.flatten`.
    """
    tree = _Tree(changes)
    for number in range(len(changes.layers)):
        tree.apply(number)
    plan = _plan(changes, tree.root)
    for number in reversed(range(len(changes.layers))):  # in the order in which registries are ready to send them
        _emit(changes, number, plan.pop(number, {}))
    return changes.end()


def _plan(changes: Changes, root: _Inode) -> dict[int, dict[int, list[bytes]]]:
    """For each layer the entries to emit, by ordinal, and their names; undeclared directories are emitted at once."""
    plan: dict[int, dict[int, list[bytes]]] = {}
    waiting = [(b"", root)]
    while waiting:
        path, inode = waiting.pop()
        if inode.source is not None:
            number, ordinal = inode.source
            plan.setdefault(number, {}).setdefault(ordinal, []).append(path)
        elif path:
            changes.put(tarheader.directory(path))
            changes.report.entries += 1
        prefix = path + b"/" if path else b""
        children = inode.children or {}
        waiting += ((prefix + name, children[name]) for name in sorted(children, reverse=True))
    return plan


def _emit(changes: Changes, number: int, names: dict[int, list[bytes]]) -> None:
    with changes.open(number, changes.put) as stream:
        for ordinal, entry in enumerate(stream):
            paths = names.get(ordinal)
            if paths is None:
                stream.drop(entry)
                continue
            for path in paths:
                changes.report.see(path, path.rpartition(b"/")[2], entry)
            changes.report.see_bytecode(paths[0], stream)
            changes.dropped(paths[0], entry)
            stream.rewrite(entry, paths[0] or b"./", entry.link)
            stream.add(b"".join(tarheader.hard_link(path, paths[0]) for path in paths[1:]))
            changes.report.entries += len(paths)
        stream.finish()


@dataclass(slots=True)
class _Tree:
    """The file tree, as it is after the layers that were applied."""

    changes: Changes
    root: _Inode = field(default_factory=lambda: _Inode(children={}))
    entries: int = 0
    size: int = 0
    names: int = 0
    implied: int = 0
    # Paths that the current layer has made or passed through: its whiteouts leave them alone.
    _touched: set[bytes] = field(default_factory=set)
    _touched_names: int = 0
    _number: int = 0

    def apply(self, number: int) -> None:
        """Do what one layer says."""
        self._number = number
        self._touched, self._touched_names = set(), 0
        changes = self.changes
        with changes.open(number, _nowhere) as stream:
            for ordinal, entry in enumerate(stream):
                path = changes.clean(entry.path, number)
                self.entries += 1
                self.size += entry.size
                self.names += len(path)
                changes.check_name(number, path, entry)
                changes.check_totals(self.entries, self.size, self.names)
                self._apply(path, entry, ordinal)
                stream.drop(entry)
            stream.finish()

    def _apply(self, path: bytes, entry: Entry, ordinal: int) -> None:
        source = self._number, ordinal
        if not path:
            if entry.kind != DIRECTORY:
                raise HostileImage(f"{self.changes.name(self._number)} says that the root of the image is no directory")
            self.root.source = source
            return
        head, _, base = path.rpartition(b"/")
        parts = self._resolve(head)
        if base[:4] == WHITEOUT:
            self._whiteout(parts, base)
            return
        directory = self._make(parts, path)
        real = b"/".join([*parts, base])
        old = directory.get(base)
        if entry.kind == DIRECTORY:
            if old is None or old.children is None:
                old = directory[base] = _Inode(children={})
            old.source = source
        else:
            # Also a directory with all that is in it.  Before a link is made: one to itself finds nothing.
            directory.pop(base, None)
            if entry.kind == LINK:
                directory[base] = self._linked(entry, path)
            else:
                directory[base] = _Inode(source=source, link=entry.link if entry.kind == SYMLINK else b"")
        while real and real not in self._touched:  # else what it lies in was added with it
            self._touched.add(real)
            self._touched_names += len(real)
            real = real.rpartition(b"/")[0]
        # An entry may lie thousands of directories deep, and name them all for the first time.
        self.changes.check_totals(self.implied, 0, self._touched_names)

    def _linked(self, entry: Entry, path: bytes) -> _Inode:
        """The inode that a hard link names; the last part of its name is not followed."""
        head, _, base = self.changes.clean(entry.link, self._number).rpartition(b"/")
        parent = self._find(self._resolve(head))
        found = parent.children.get(base) if parent is not None and parent.children is not None else None
        if found is None or found.children is not None:
            raise CorruptImage(
                f"{self.changes.name(self._number)} has a hard link to {'a directory' if found else 'no file'}",
                f"{show(path)} -> {show(entry.link)}",
                "Have the image built anew.",
            )
        return found

    def _resolve(self, path: bytes) -> list[bytes]:
        """The parts of a path behind its symlinks, followed inside the image; parts that do not exist stay."""
        done: list[bytes] = []
        inodes: list[_Inode | None] = [self.root]
        waiting = path.split(b"/")[::-1] if path else []
        followed = 0
        while waiting:
            part = waiting.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if done:
                    done.pop()
                    inodes.pop()
                continue
            above = inodes[-1]
            inode = above.children.get(part) if above is not None and above.children is not None else None
            if inode is not None and inode.link:
                followed += 1
                if followed > _MAX_SYMLINKS:
                    raise HostileImage(
                        f"{self.changes.name(self._number)} has a name below a symlink that leads to itself", show(path)
                    )
                if inode.link[:1] == b"/":
                    done, inodes = [], [self.root]
                waiting += inode.link.split(b"/")[::-1]
                continue
            done.append(part)
            inodes.append(inode)
        if followed:
            self.changes.report.note(f"{show(path)} leads through a symlink to {show(b'/'.join(done))}")
        return done

    def _find(self, parts: list[bytes]) -> _Inode | None:
        inode: _Inode | None = self.root
        for part in parts:
            if inode is None or inode.children is None:
                return None
            inode = inode.children.get(part)
        return inode

    def _make(self, parts: list[bytes], path: bytes) -> dict[bytes, _Inode]:
        """The children of a directory, made with its parents if it is not there."""
        assert self.root.children is not None
        children = self.root.children
        for part in parts:
            inode = children.get(part)
            if inode is None:
                inode = children[part] = _Inode(children={})
                self.implied += 1
            if inode.children is None:
                raise HostileImage(
                    f"{self.changes.name(self._number)} puts entries below a file",
                    show(path),
                    "Have the image built anew.",
                )
            children = inode.children
        return children

    def _whiteout(self, parts: list[bytes], base: bytes) -> None:
        """Remove a path, or all that is in a directory, except for what the layer itself has put there."""
        parent = self._find(parts)
        if parent is None or parent.children is None:
            return
        prefix = b"/".join(parts) + b"/" if parts else b""
        if base == OPAQUE:
            self._purge(parent.children, prefix)
            return
        name = self.changes.whiteout(base, self._number)
        inode = parent.children.get(name)
        if inode is None:
            return
        if prefix + name not in self._touched:
            del parent.children[name]
        elif inode.children is not None:
            self._purge(inode.children, prefix + name + b"/")

    def _purge(self, children: dict[bytes, _Inode], prefix: bytes) -> None:
        waiting = [(children, prefix)]
        while waiting:
            children, prefix = waiting.pop()
            for name, inode in list(children.items()):
                if prefix + name not in self._touched:
                    del children[name]
                elif inode.children is not None:
                    waiting.append((inode.children, prefix + name + b"/"))


def _nowhere(data: bytes | memoryview) -> None:
    """Where what passes goes while the layers are only looked at."""
