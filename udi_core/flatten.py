"""Merge the layers of an image into one tar stream, top layer first, without unpacking anything to disk.

An entry is emitted the first time that its path is seen, unless a layer above hid it: what is above decides, so
reading from the top never needs to take anything back.  The raw blocks of an entry pass through as they are, and a
run of entries that pass is written in one piece.

Four things cannot be known while the top is read.  They are rare; the merge goes on to find them all, and then
starts anew with what it has learned (see :class:`_Lessons`):

- a directory that a layer uses without declaring it is, in a layer below, a symlink: the entry belongs elsewhere;
- a name is written twice in one layer: the last one counts;
- a hard link names a file which a layer above has hidden: the link must become the file;
- an entry lies below what the same layer later says is no directory.

Source: OCI image-spec layer.md, "Whiteouts" and "Applying Changesets".
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from udi_core import tarheader
from udi_core.digest import short
from udi_core.errors import CorruptImage, HostileImage
from udi_core.layer import LayerInput, read_layer
from udi_core.progress import Progress, ProgressSink, ignore
from udi_core.tarheader import BLOCK, DIRECTORY, LINK, SYMLINK
from udi_core.tarstream import Entry, TarStream

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."  # whiteout names that AUFS kept for itself
_ODD_ENDS = frozenset((b"", b"/", b"."))
_SHELLS = frozenset((b"sh", b"bash", b"busybox"))
_MAX_SYMLINKS = 40  # as in path_resolution(7)

# What stands at a path, as the layers read so far have said.
_IMPLICIT, _DIRECTORY, _OTHER = 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an image may ask of the machine before it counts as a bomb."""

    entries: int = 20_000_000
    size: int = 1 << 40
    path: int = 4095  # PATH_MAX without its NUL
    header: int = 1 << 20


@dataclass(slots=True, kw_only=True)
class FlattenReport:
    """What a merge did.

    Attributes:
        entries: entries emitted.
        size: bytes of the merged tar.
        contained: names that pointed outside the image and were kept inside, at most the first hundred.
        links: for programs below a ``bin`` directory whose name begins with "python", and shells: the path
            (no leading slash) and its link target, or None for a file.
    """

    entries: int = 0
    size: int = 0
    contained: list[str] = field(default_factory=list)
    programs: dict[str, str | None] = field(default_factory=dict)


def flatten(
    layers: Sequence[LayerInput],
    start: Callable[[], Callable[[bytes | memoryview], object]],
    *,
    limits: Limits | None = None,
    progress: ProgressSink = ignore,
) -> FlattenReport:
    """Merge ``layers`` (lowest first, as in the manifest) into one tar stream.

    ``start`` begins a new output and returns its ``write``; it is called once, or once more if the merge has to
    begin anew, and must then throw away what was written before.

    Raises:
        CorruptImage: a layer is truncated or malformed, or a digest is wrong.
        HostileImage: a layer tries to leave the image, or exceeds ``limits``.
    """
    limits = limits or Limits()
    lessons = _Lessons()
    for _ in range(4):
        merge = _Merge(start(), lessons, limits, progress)
        learned = merge.run(layers)
        if learned is None:
            return merge.report
        lessons = learned
    raise HostileImage(
        "The image's layers contradict each other",
        "Symlinks, hard links and names written twice are so entangled that no order resolves them.",
        "Have the image built anew.",
    )


@dataclass(slots=True)
class _Lessons:
    """What an earlier attempt found out.  Layers are counted from the lowest, 0.

    Attributes:
        renames: (layer, directory) -> the directory that it really is.
        skips: (layer, path) -> how many of the first entries at this path are overwritten later.
        rescues: (layer, path of a hidden file) -> names of hard links that must become its content.
        rescued: (layer, hard link) that are emitted where their content is, not where they stand.
    """

    renames: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    skips: Counter[tuple[int, bytes]] = field(default_factory=Counter)
    rescues: dict[tuple[int, bytes], list[bytes]] = field(default_factory=dict)
    rescued: set[tuple[int, bytes]] = field(default_factory=set)

    def copy(self) -> _Lessons:
        rescues = {key: list(links) for key, links in self.rescues.items()}
        return _Lessons(dict(self.renames), self.skips.copy(), rescues, set(self.rescued))


class _Merge:
    """One attempt: the state of all layers that have been read, and the output."""

    def __init__(
        self, write: Callable[[bytes | memoryview], object], lessons: _Lessons, limits: Limits, progress: ProgressSink
    ) -> None:
        self.report = FlattenReport()
        self.lessons, self.limits = lessons, limits
        self.learned: _Lessons | None = None
        #: What layers above say of a path.
        self.seen: dict[bytes, int] = {}
        self.gone: set[bytes] = set()
        self.opaque: set[bytes] = set()
        #: Directory that layers used without declaring it -> those layers, until a layer below confirms it.
        self.undeclared: dict[bytes, list[int]] = {}
        #: Target of hard links that no layer so far has held -> (layer of the link, link).
        self.wanted: dict[bytes, list[tuple[int, bytes]]] = {}
        self.entries = self.size = 0
        self._write, self._progress = write, progress

    def run(self, layers: Sequence[LayerInput]) -> _Lessons | None:
        """None if the merge is right, else what to know in the next attempt."""
        total = sum(layer.descriptor.size for layer in layers)
        done = 0

        def consumed(count: int) -> None:
            nonlocal done
            done += count
            self._progress(Progress("flatten", "layers", done, total))

        for number in reversed(range(len(layers))):
            stream = read_layer(layers[number], consumed)
            try:
                _LayerPass(self, number, f"Layer {short(layers[number].descriptor.digest)}").run(iter(stream))
            finally:
                stream.close()
        for target, links in self.wanted.items():
            raise _broken_link(links[0][1], target)
        if b"" not in self.seen:
            # An archive of no entries is none to tar2sqfs, and a root that no layer declares gets no time of its own.
            self.put(tarheader.directory(b"./"))
        self.put(bytes(2 * BLOCK))
        return self.learned

    def put(self, data: bytes | memoryview) -> None:
        # An attempt that has learned something is lost: it only reads on, to learn the rest.
        if self.learned is None and data:
            self._write(data)
            self.report.size += len(data)

    def learn(self) -> _Lessons:
        if self.learned is None:
            self.learned = self.lessons.copy()
        return self.learned


class _LayerPass:
    """One layer of one attempt.

    What the layer itself says is kept apart until it ends: its whiteouts hide the layers below, not its own entries.
    """

    def __init__(self, merge: _Merge, number: int, what: str) -> None:
        self.merge, self.number, self.what = merge, number, what
        self.own: dict[bytes, int] = {}
        self.gone: set[bytes] = set()
        self.opaque: set[bytes] = set()
        self.symlinks: dict[bytes, bytes] = {}
        self.emitted: set[bytes] = set()  # only files that hard links may name; see _emit
        self.hidden: set[bytes] = set()
        self.aliases: dict[bytes, bytes] = {}  # hard link -> the file that it is, in the end
        self.directories: dict[bytes, tuple[bytes, bool]] = {}
        self.occurrences: Counter[bytes] = Counter()
        self.depth = 0

    def run(self, pieces: Iterator[bytes]) -> None:
        merge, number, own = self.merge, self.number, self.own
        stream = TarStream(pieces, merge.put, self.what, merge.limits.header)
        seen, gone, directories, skips = merge.seen, merge.gone, self.directories, merge.lessons.skips
        undeclared, wanted = merge.undeclared, merge.wanted
        rescues, rescued = merge.lessons.rescues, merge.lessons.rescued
        longest, entries, size = merge.limits.path, merge.entries, merge.size
        for entry in stream:
            path = entry.path
            if path[:1] in _ODD_ENDS or path[-1:] in _ODD_ENDS or b"/." in path or b"//" in path:
                path = self._clean(path)
            entries += 1
            size += entry.size
            if len(path) > longest or entries > merge.limits.entries or size > merge.limits.size:
                raise self._too_large(path)
            slash = path.rfind(b"/")
            base = path[slash + 1 :]
            parent = path[:slash] if slash > 0 else b""
            real, hidden = directories.get(parent) or self._directory(parent)
            if base[:4] == _WHITEOUT:
                if base == _OPAQUE:
                    self.opaque.add(real)
                elif base[:8] != _AUFS:
                    self.gone.add(real + b"/" + base[4:] if real else base[4:])
                stream.drop(entry)
                continue
            moved = real != parent
            if moved:
                path = real + b"/" + base if real else base
            if skips and (number, path) in skips:
                self.occurrences[path] += 1
                if self.occurrences[path] <= skips[number, path]:
                    stream.drop(entry)
                    continue
            kind = _DIRECTORY if entry.type == DIRECTORY else _OTHER
            before = own.get(path)
            if before is not None:
                self._again(path, before, kind)
            if path in undeclared:
                self._confirm(path, entry, kind)
            own[path] = kind
            above = seen.get(path)
            visible = not hidden and path not in gone and (above is None or (above == _IMPLICIT and kind == _DIRECTORY))
            if kind == _DIRECTORY:
                if path in directories:
                    pass
                elif path not in gone and above != _OTHER and path not in merge.opaque:
                    directories[path] = path, hidden
            elif not visible:
                self.hidden.add(path)
            if entry.type == SYMLINK:
                self.symlinks[path] = entry.link
            target = b""
            if entry.type == LINK:
                target = self._target(entry.link)
                self.aliases[path] = target
                if rescued and (number, path) in rescued:
                    visible = False
                elif visible:
                    self._link(path, target)
                if wanted and path in wanted:
                    # Links of layers above to a link of this one are links to what it links to.
                    for layer, link in wanted.pop(path):
                        self._link(link, target, layer)
                if not visible:
                    stream.drop(entry)
                    continue
            else:
                if wanted and path in wanted:
                    self._serve(path, wanted.pop(path), visible)
                if rescues and (number, path) in rescues:
                    names = ([path] if visible else []) + rescues[number, path]
                    merge.report.entries += len(names)
                    links = b"".join(tarheader.hard_link(name, names[0]) for name in names[1:])
                    stream.rewrite(entry, names[0], behind=links)
                    continue
                if not visible:
                    stream.drop(entry)
                    continue
            merge.report.entries += 1
            if base[:6] == b"python" or base in _SHELLS:
                self._program(path, entry, target)
            if moved or (target and target != entry.link):
                stream.rewrite(entry, path, target)
            else:
                stream.keep(entry)
        stream.finish()
        merge.entries, merge.size = entries, size
        self._close()

    def _directory(self, path: bytes) -> tuple[bytes, bool]:
        """Where a directory that this layer names really is, and whether layers above hide what it puts there."""
        known = self.directories.get(path)
        if known is not None:
            return known
        merge = self.merge
        if not path:
            known = b"", b"" in merge.opaque
        else:
            self.depth += 1
            if self.depth > 4 * merge.limits.path:
                raise HostileImage(f"{self.what} has a symlink that leads to itself", _show(path))
            slash = path.rfind(b"/")
            parent, hidden = self._directory(path[:slash] if slash > 0 else b"")
            real = parent + b"/" + path[slash + 1 :] if parent else path[slash + 1 :]
            if real in self.symlinks:
                self._contained(path)
                known = self._follow(_resolve(real, self.symlinks[real]))
            elif (self.number, real) in merge.lessons.renames:
                known = self._follow(merge.lessons.renames[self.number, real])
            else:
                state = self.own.get(real)
                if state == _OTHER:
                    raise HostileImage(f"{self.what} puts entries below a file", _show(path))
                if state is None:
                    self.own[real] = _IMPLICIT
                    merge.undeclared.setdefault(real, []).append(self.number)
                known = real, hidden or real in merge.gone or real in merge.opaque or merge.seen.get(real) == _OTHER
            self.depth -= 1
        self.directories[path] = known
        return known

    def _follow(self, target: bytes) -> tuple[bytes, bool]:
        self.depth += 100
        if self.depth > 100 * _MAX_SYMLINKS:
            raise HostileImage(f"{self.what} has a symlink that leads to itself", _show(target))
        found = self._directory(target)
        self.depth -= 100
        return found

    def _clean(self, path: bytes) -> bytes:
        """A name without empty and ``.`` components; what begins at the root is taken from the image's root."""
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise HostileImage(
                f"{self.what} has a name that leads out of the image",
                _show(path),
                "Nothing was written. Do not use this image.",
            )
        if path[:1] == b"/":
            self._contained(path)
        return b"/".join(parts)

    def _contained(self, path: bytes) -> None:
        if len(self.merge.report.contained) < 100:
            self.merge.report.contained.append(_show(path))

    def _too_large(self, path: bytes) -> HostileImage:
        limits = self.merge.limits
        if len(path) > limits.path:
            return HostileImage(f"{self.what} has a name of {len(path)} bytes", _show(path[:200]) + "…")
        return HostileImage(
            "The image is larger than the limits allow",
            f"More than {limits.entries} entries, or more than {limits.size} bytes uncompressed.",
            "If you trust it, raise the limits in the configuration.",
        )

    def _again(self, path: bytes, before: int, kind: int) -> None:
        """A path that this layer has named before."""
        if before == _IMPLICIT and kind == _DIRECTORY:
            return
        if before != _OTHER and kind == _OTHER:
            raise HostileImage(
                f"{self.what} contradicts itself",
                f"It puts entries below {_show(path)}, and then says that this is no directory.",
                "Have the image built anew.",
            )
        self.merge.learn().skips[self.number, path] += 1

    def _confirm(self, path: bytes, entry: Entry, kind: int) -> None:
        """Layers above used ``path`` as a directory without declaring it; this is what it was for them."""
        users = self.merge.undeclared.pop(path)
        if kind == _DIRECTORY:
            return
        users = [each for each in users if each > self.number]
        if not users:
            return
        if entry.type != SYMLINK:
            raise HostileImage(
                "The image's layers contradict each other",
                f"{_show(path)} is a file in one layer, and another puts entries below it.",
                "Have the image built anew.",
            )
        for user in users:
            self.merge.learn().renames[user, path] = _resolve(path, entry.link)

    def _target(self, link: bytes) -> bytes:
        """The path of the file that a hard link of this layer names."""
        clean = self._clean(link)
        slash = clean.rfind(b"/")
        real, _ = self._directory(clean[:slash] if slash > 0 else b"")
        path = real + b"/" + clean[slash + 1 :] if real else clean[slash + 1 :]
        return self.aliases.get(path, path)

    def _link(self, path: bytes, target: bytes, layer: int | None = None) -> None:
        """A visible hard link (of this layer, or of one above): its target must be there, or be rescued."""
        at = self.own.get(target)
        layer = self.number if layer is None else layer
        if at is None:
            self.merge.wanted.setdefault(target, []).append((layer, path))
        elif at != _OTHER:
            raise CorruptImage(f"{self.what} has a hard link to a directory", f"{_show(path)} -> {_show(target)}")
        elif target in self.hidden:
            self._rescue(target, layer, path)

    def _serve(self, path: bytes, links: list[tuple[int, bytes]], visible: bool) -> None:
        """The target of hard links in layers above has come."""
        if not visible:
            for layer, link in links:
                self._rescue(path, layer, link)

    def _rescue(self, target: bytes, layer: int, link: bytes) -> None:
        if (layer, link) not in self.merge.lessons.rescued:
            learned = self.merge.learn()
            learned.rescues.setdefault((self.number, target), []).append(link)
            learned.rescued.add((layer, link))

    def _program(self, path: bytes, entry: Entry, target: bytes) -> None:
        parent = path.rpartition(b"/")[0]
        if parent == b"bin" or parent[-4:] == b"/bin":
            link = os.fsdecode(entry.link) if entry.type == SYMLINK else "/" + os.fsdecode(target) if target else None
            self.merge.report.programs.setdefault(os.fsdecode(path), link)

    def _close(self) -> None:
        """The layer has ended: what it says now holds for the layers below."""
        merge = self.merge
        seen = merge.seen
        for path, kind in self.own.items():
            above = seen.get(path)
            if above is None or (above == _IMPLICIT and kind == _DIRECTORY):
                seen[path] = kind
            elif kind == _OTHER and above != _OTHER:
                # A directory above, none here: what layers below have in it went when this layer was applied.
                merge.opaque.add(path)
        if self.gone or self.opaque:
            for path in [each for each in merge.undeclared if self._covers(each)]:
                del merge.undeclared[path]
            for path, links in merge.wanted.items():
                if links[0][0] > self.number and self._covers(path):
                    raise _broken_link(links[0][1], path)
        merge.gone |= self.gone
        merge.opaque |= self.opaque

    def _covers(self, path: bytes) -> bool:
        """Whether this layer's whiteouts hide a path of the layers below."""
        if path in self.gone:
            return True
        while path:
            path = path.rpartition(b"/")[0]
            if path in self.opaque or path in self.gone:
                return True
        return False


def _resolve(path: bytes, target: bytes) -> bytes:
    """Where a symlink at ``path`` leads, inside the image: ``..`` stops at its root."""
    parts = [] if target[:1] == b"/" else path.split(b"/")[:-1]
    for part in target.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _broken_link(link: bytes, target: bytes) -> CorruptImage:
    return CorruptImage(
        "The image has a hard link to a file that is not there",
        f"{_show(link)} -> {_show(target)}",
        "Have the image built anew.",
    )


def _show(path: bytes) -> str:
    """A name as it can be printed: odd bytes escaped."""
    return os.fsdecode(path).encode("unicode_escape", "surrogateescape").decode("ascii", "backslashreplace") or "/"
