"""Merge layers from the top: each layer is read once, and an entry is emitted the first time its path is seen.

What is above decides, so that nothing ever has to be taken back.  The raw blocks of an entry pass through as they
are, and a run of entries that pass is written in one piece.

This holds as long as paths mean what they say.  Where one does not, which only lower layers can tell in some cases,
:class:`NeedsReplay` is raised.  One such case is common enough to be done here: a hard link whose target, in the
same layer, a layer above has hidden.  The content is fetched from that layer once more, when all others are done.
"""

from __future__ import annotations

from udi_core import tarheader
from udi_core.changeset import MAX_NAME, OPAQUE, SHELLS, WHITEOUT, Changes, FlattenReport, show
from udi_core.errors import HostileImage
from udi_core.tarheader import DIRECTORY, LINK, LINKS
from udi_core.tarstream import Entry, TarStream

# What stands at a path, as the layers read so far have said.
_IMPLICIT, _DIRECTORY, _OTHER = 1, 2, 3

_ODD_ENDS = frozenset((b"", b"/", b"."))
_DOT = ord(".")


class NeedsReplay(Exception):
    """The layers can be merged only by doing in order what they say; the message names the reason."""


def merge(changes: Changes) -> FlattenReport:
    """Merge layers from the top.

    Raises:
        NeedsReplay: that cannot be done; what was written is worthless.
        CorruptImage, HostileImage, UnsupportedImage: see :func:`udi_core.flatten.flatten`.
    """
    state = _State()
    rescues: dict[int, dict[bytes, list[bytes]]] = {}
    for number in reversed(range(len(changes.layers))):
        layer = _Layer(changes, state, number)
        with changes.open(number, changes.put) as stream:
            layer.run(stream)
        layer.close()
        if layer.rescues:
            rescues[number] = layer.rescues
    if state.wanted:
        raise NeedsReplay(f"a hard link to {show(min(state.wanted))}, which no layer below has")
    for path in sorted(state.implicit):
        # It may be empty by now.
        changes.put(tarheader.directory(path))
        changes.report.entries += 1
    changes.expect("layers with hidden files", rescues)
    for number, targets in rescues.items():
        _rescue(changes, number, targets)
    for path, target in state.links:
        changes.put(tarheader.hard_link(path, target))
        changes.report.entries += 1
    return changes.end()


def _rescue(changes: Changes, number: int, targets: dict[bytes, list[bytes]]) -> None:
    """Read a layer again for hidden files that have visible names: the first becomes the file, the others links."""
    with changes.open(number, changes.put) as stream:
        for entry in stream:
            path = changes.clean(entry.path, number)
            names = targets.get(path) if entry.kind != LINK and entry.kind != DIRECTORY else None
            if names is None:
                stream.drop(entry)
                continue
            stream.rewrite(entry, names[0], entry.link)
            stream.add(b"".join(tarheader.hard_link(name, names[0]) for name in names[1:]))
            changes.dropped(names[0], entry)
            changes.report.entries += len(names)
        stream.finish()


class _State:
    """What the layers that have been read say of those below.

    Attributes:
        seen: path -> what stands there.
        gone: paths that whiteouts hide.
        opaque: directories whose content in lower layers is hidden.
        undeclared: directories that were used without being declared; a layer below must not have a symlink there.
        implicit: those of them that are visible, until a layer below declares them.
        wanted: targets of hard links that no layer so far has had.
        links: those hard links; they are emitted last of all, for mksquashfs wants a target before its links.
        implied, implied_names: how many directories no entry declared, and the bytes of their names: a thousand times
            what the layer holds, if each entry lies a thousand directories deep.
    """

    def __init__(self) -> None:
        self.seen: dict[bytes, int] = {}
        self.gone: set[bytes] = set()
        self.opaque: set[bytes] = set()
        self.undeclared: set[bytes] = set()
        self.implicit: set[bytes] = set()
        self.wanted: set[bytes] = set()
        self.links: list[tuple[bytes, bytes]] = []
        self.entries = self.size = self.names = 0
        self.implied = self.implied_names = 0


class _Layer:
    """One layer.  What it says is kept apart until it ends: its whiteouts do not hide its own entries."""

    def __init__(self, changes: Changes, state: _State, number: int) -> None:
        self.changes, self.state, self.number = changes, state, number
        self.own: dict[bytes, int] = {}
        self.implied: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.opaque: set[bytes] = set()
        self.wanted: set[bytes] = set()
        #: Files that layers above hide: a hard link to one of them cannot stay as it is.
        self.hidden: set[bytes] = set()
        #: Hard links -> the file that they are, in the end.
        self.aliases: dict[bytes, bytes] = {}
        #: Hidden file -> its names that are not hidden.
        self.rescues: dict[bytes, list[bytes]] = {}
        #: Directories that entries were put into -> whether layers above hide what this layer puts there.
        self.parents: dict[bytes, bool] = {b"": b"" in state.opaque}

    def run(self, stream: TarStream) -> None:
        """Emit what no layer above hides."""
        changes, state, own, number = self.changes, self.state, self.own, self.number
        seen, gone, undeclared, wanted = state.seen, state.gone, state.undeclared, state.wanted
        parents, report = self.parents, changes.report
        max_entries, max_size, max_names = changes.limits.entries, changes.limits.size, changes.limits.names
        entries, size, names = state.entries, state.size, state.names
        emitted = 0
        for entry in stream:
            path, kind = entry.path, entry.kind
            if path[:2] == b"./":
                path = path[2:]
            slash = path.rfind(b"/")
            base = path[slash + 1 :]
            parent = path[:slash] if slash > 0 else b""
            hidden = parents.get(parent)
            entries += 1
            size += entry.size
            names += len(path)
            if size > max_size or entries > max_entries or names > max_names:
                changes.check_totals(entries, size, names)
            if len(path) > MAX_NAME or kind in LINKS:
                changes.check_name(number, path, entry)
            if hidden is None or not base or base[0] == _DOT or not slash:
                path = self._clean(entry)
                parent, _, base = path.rpartition(b"/")
                if base[:4] == WHITEOUT:
                    self._whiteout(parent, base)
                    stream.drop(entry)
                    continue
                if not path:
                    emitted += self._root(stream, entry)
                    continue
                hidden = parents.get(parent)
                if hidden is None:
                    hidden = self._parent(parent)
            is_directory = kind == DIRECTORY
            stands = _DIRECTORY if is_directory else _OTHER
            if path in own:
                self._again(path, stands)
            elif path in undeclared:
                self._confirm(path, stands)
            own[path] = stands
            above = seen.get(path)
            visible = not hidden and path not in gone and (above is None or (above == _IMPLICIT and is_directory))
            if not visible and not is_directory:
                self.hidden.add(path)
            if path in wanted:
                self._found(path, stands, visible)
            if kind == LINK:
                visible = self._link(path, entry, visible)
            if not visible:
                stream.drop(entry)
                continue
            emitted += 1
            if is_directory:
                state.implicit.discard(path)
            elif base[:6] == b"python" or base in SHELLS:
                report.see(path, base, entry)
            elif base[-4:] == b".pyc" and parent[-11:] == b"__pycache__":
                report.see_bytecode(path, stream)
            if entry.dropped:
                changes.dropped(path, entry)
            stream.keep(entry, path)
        stream.finish()
        state.entries, state.size, state.names = entries, size, names
        report.entries += emitted

    def _clean(self, entry: Entry) -> bytes:
        path = self.changes.clean(entry.path, self.number)
        if path and path != entry.path.removeprefix(b"./").strip(b"/"):
            entry.plain = False  # tools that write squashfs refuse some of what is cleaned away
        return path

    def _root(self, stream: TarStream, entry: Entry) -> int:
        """The entry of the root: the topmost one counts, and of several in one layer the last."""
        if entry.kind != DIRECTORY:
            raise HostileImage(f"{self.changes.name(self.number)} says that the root of the image is no directory")
        self.own[b""] = _DIRECTORY
        if b"" in self.state.seen:
            stream.drop(entry)
            return 0
        stream.keep(entry, b"./")
        return 1

    def _parent(self, path: bytes) -> bool:
        """Whether layers above hide what this layer puts into a directory; declares it if the layer does not."""
        state, own = self.state, self.own
        missing = []
        while path not in self.parents:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        hidden = self.parents[path]
        for path in reversed(missing):
            kind = own.get(path)
            if kind == _OTHER:
                raise NeedsReplay(f"entries lie below {show(path)}, which the same layer says is no directory")
            hidden = hidden or path in state.gone or state.seen.get(path) == _OTHER
            if kind is None:
                own[path] = _IMPLICIT
                self.implied.add(path)
                self._undeclared(path)
                if not hidden and path not in state.seen:
                    state.implicit.add(path)
            hidden = self.parents[path] = hidden or path in state.opaque
        return hidden

    def _undeclared(self, path: bytes) -> None:
        """A directory is used that this layer has not declared."""
        state = self.state
        state.undeclared.add(path)
        state.implied += 1
        state.implied_names += len(path)
        self.changes.check_totals(state.implied, 0, state.implied_names)

    def _again(self, path: bytes, kind: int) -> None:
        """A path that this layer has named before."""
        if self.own[path] != _IMPLICIT or kind != _DIRECTORY:
            raise NeedsReplay(f"a layer writes {show(path)} twice")

    def _confirm(self, path: bytes, kind: int) -> None:
        """Layers above used ``path`` as a directory without declaring it; this is what it was for them."""
        if kind != _DIRECTORY:
            raise NeedsReplay(f"entries lie below {show(path)}, which a layer below says is no directory")
        self.state.undeclared.discard(path)

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        self._lead(parent)
        if base == OPAQUE:
            self._empty(parent)
            return
        name = self.changes.whiteout(base, self.number)
        path = parent + b"/" + name if parent else name
        before = self.own.get(path)
        if before is None:
            self.gone.add(path)
        elif before != _OTHER:
            # What the layer itself has put there stays; of a directory, all else goes.
            self._empty(path)

    def _lead(self, path: bytes) -> None:
        """A whiteout lies in ``path``, which must be a directory, but is not made one by that."""
        while path and path not in self.parents:
            kind = self.own.get(path)
            if kind == _OTHER:
                raise NeedsReplay(f"a whiteout lies below {show(path)}, which the same layer says is no directory")
            if kind is None:
                self._undeclared(path)
            path = path.rpartition(b"/")[0]

    def _empty(self, path: bytes) -> None:
        below = path + b"/" if path else b""
        if path in self.implied or any(each.startswith(below) for each in self.implied):
            raise NeedsReplay(f"{show(path)} is emptied by a layer that puts entries there without declaring it")
        self.opaque.add(path)

    def _link(self, path: bytes, entry: Entry, visible: bool) -> bool:
        """A hard link: mend its target; False if it is not to be emitted here."""
        target = entry.link
        if target[:1] in _ODD_ENDS or target[-1:] in _ODD_ENDS or b"/." in target or b"//" in target:
            target = self.changes.clean(target, self.number)
            entry.link, entry.plain = target, False  # mksquashfs takes "./" off names only
        kind = self.own.get(target)
        if target == path or kind in (_IMPLICIT, _DIRECTORY):
            raise NeedsReplay(f"{show(path)} is a hard link to itself or to a directory")
        final = self.aliases[path] = self.aliases.get(target, target)
        if not visible:
            return False
        if final not in self.own:
            if self._is_hidden(final):
                raise NeedsReplay(f"{show(path)} is a hard link to a file of another layer that is hidden")
            self.wanted.add(final)
            self.state.links.append((path, final))
            return False
        if target not in self.hidden:
            return True
        if final in self.hidden:
            self.rescues.setdefault(final, []).append(path)
            return False
        entry.link, entry.plain = final, False
        return True

    def _is_hidden(self, path: bytes) -> bool:
        """Whether layers above hide a path of the layers below."""
        state = self.state
        if path in state.seen or path in state.gone:
            return True
        while path:
            path = path.rpartition(b"/")[0]
            if path in state.gone or path in state.opaque or state.seen.get(path) == _OTHER:
                return True
        return False

    def _found(self, path: bytes, kind: int, visible: bool) -> None:
        """The target of hard links in layers above has come."""
        if kind != _OTHER or not visible:
            raise NeedsReplay(f"a hard link to {show(path)} is not what it seems")
        self.state.wanted.discard(path)

    def close(self) -> None:
        """The layer has ended: what it says now holds for the layers below."""
        state = self.state
        for target in self.wanted:
            if target in self.own or self._covers(target):
                raise NeedsReplay(f"a layer has a hard link to {show(target)}, which it replaces or removes")
        if self.number == 0 and not self.wanted:
            return
        seen, opaque = state.seen, state.opaque
        for path, kind in self.own.items():
            above = seen.get(path)
            if above is None or (above == _IMPLICIT and kind == _DIRECTORY):
                seen[path] = kind
            elif kind == _OTHER and above != _OTHER:
                # A directory above, none here: what layers below have in it went when this layer was applied.
                opaque.add(path)
        if self.gone or self.opaque:
            for path in [each for each in state.undeclared if self._covers(each)]:
                state.undeclared.discard(path)
            for path in state.wanted:
                if self._covers(path):
                    raise NeedsReplay(f"a hard link names {show(path)}, which a layer below removes")
        state.gone |= self.gone
        state.opaque |= self.opaque
        state.wanted |= self.wanted

    def _covers(self, path: bytes) -> bool:
        """Whether this layer's whiteouts hide a path of the layers below."""
        if path in self.gone:
            return True
        while path:
            path = path.rpartition(b"/")[0]
            if path in self.opaque or path in self.gone:
                return True
        return False
