"""Layers as changes to a file tree: what both ways of merging them have in common.

Source: OCI image-spec layer.md, "Representing Changes" and "Whiteouts".
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from udi_core import tarheader
from udi_core.digest import short
from udi_core.errors import HostileImage
from udi_core.layer import LayerInput, read_layer
from udi_core.progress import Progress, ProgressSink
from udi_core.tarheader import BLOCK, LINK, LINKS
from udi_core.tarstream import Entry, TarStream

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
MAX_NAME, MAX_PATH = 255, 4095  # NAME_MAX; PATH_MAX without its NUL
# Whiteouts of nothing, of "." and of ".."; umoci would remove the directory that they stand in.
_EMPTY_WHITEOUTS = frozenset((b".wh.", b".wh..", b".wh..."))
SHELLS = frozenset((b"sh", b"bash", b"dash", b"busybox"))
_PROGRAM = re.compile(rb"python[0-9.]*|sh|bash|dash|busybox")
_BYTECODE = re.compile(rb"__pycache__/[^/]*\.([a-z]+-[0-9]+)\.pyc\Z")
_MAX_NOTES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an image may ask of the machine before it counts as a bomb.

    Attributes:
        entries: in all layers together.
        size: bytes of content in all layers together, holes of sparse files included.
        names: bytes of the names of all entries; about what merging them takes of memory.
        header: bytes of one extended header.
        ratio: how many times as large as its blob a layer may become, beyond the first GiB.
    """

    entries: int = 20_000_000
    size: int = 1 << 42
    names: int = 1 << 31
    header: int = 1 << 20
    ratio: int = 250


@dataclass(slots=True, kw_only=True)
class FlattenReport:
    """What a merge did.

    Attributes:
        entries: entries emitted.
        size: bytes of the merged tar.
        notes: what was kept inside the image or left out, and why; at most the first hundred.
        programs: for Pythons and shells in directories named ``bin``: the path (no leading slash) and its link
            target, or None for a file.
        bytecode: for each kind of ``.pyc`` in the image (``cpython-312``) its magic number, four bytes.
    """

    entries: int = 0
    size: int = 0
    notes: list[str] = field(default_factory=list)
    programs: dict[str, str | None] = field(default_factory=dict)
    bytecode: dict[str, bytes] = field(default_factory=dict)

    def note(self, text: str) -> None:
        if len(self.notes) < _MAX_NOTES and text not in self.notes:
            self.notes.append(text)

    def see(self, path: bytes, base: bytes, entry: Entry) -> None:
        """Record an entry if it is a program of interest."""
        parent = path[: -len(base) - 1]
        if (parent == b"bin" or parent[-4:] == b"/bin") and _PROGRAM.fullmatch(base):
            link = os.fsdecode(entry.link) if entry.link else None
            # A hard link's target counts from the root, a symlink's from its own directory.
            self.programs[os.fsdecode(path)] = "/" + link.lstrip("/") if link and entry.kind == LINK else link

    def see_bytecode(self, path: bytes, stream: TarStream) -> None:
        """Record the magic number of the current entry if it is a ``__pycache__/name.cpython-312.pyc``."""
        found = _BYTECODE.search(path)
        if found and os.fsdecode(found[1]) not in self.bytecode:
            head = stream.peek(4)
            if head[2:] == b"\r\n":
                self.bytecode[os.fsdecode(found[1])] = head


class Changes:
    """The layers of an image, to be read one by one, and the tar that they become.

    Args:
        layers: lowest first.
        write: takes the tar.
        again: whether the layers were read before in vain, and will be read twice now.
        rewrite: write all headers anew.
    """

    def __init__(
        self,
        layers: Sequence[LayerInput],
        write: Callable[[bytes | memoryview], object],
        limits: Limits,
        progress: ProgressSink,
        again: bool = False,
        rewrite: bool = False,
    ) -> None:
        self.layers, self.limits, self._rewrite = layers, limits, rewrite
        self.report = FlattenReport()
        self._write, self._progress = write, progress
        self._item, self._done, self._total = "", 0, 0
        everything = range(len(layers))
        self.expect("layers again" if again else "layers", [*everything, *everything] if again else everything)
        # First of all: tar2sqfs looks at the first bytes for signs of compression, and a name may look like those.
        # The entry of a layer's root takes the place of this one.
        self.put(tarheader.directory(b"./"))

    def put(self, data: bytes | memoryview) -> None:
        """Write some of the merged tar."""
        if data:
            self._write(data)
            self.report.size += len(data)

    def end(self) -> FlattenReport:
        """Write the end of the tar."""
        self.put(bytes(2 * BLOCK))
        return self.report

    def name(self, number: int) -> str:
        """A layer as errors call it."""
        return f"Layer {short(self.layers[number].descriptor.digest)}"

    def expect(self, item: str, numbers: Iterable[int]) -> None:
        """Begin a new item of progress: these layers will be read."""
        self._item, self._done = item, 0
        self._total = sum(self.layers[number].descriptor.size for number in numbers)

    @contextlib.contextmanager
    def open(self, number: int, put: Callable[[bytes | memoryview], None]) -> Iterator[TarStream]:
        """The entries of a layer; its digests are checked when :meth:`TarStream.finish` has read it to its end."""
        stream = read_layer(self.layers[number], self.limits.ratio, self._consumed)
        try:
            yield TarStream(iter(stream), put, self.name(number), self.limits.header, self._rewrite)
        finally:
            stream.close()

    def _consumed(self, count: int) -> None:
        self._done += count
        self._progress(Progress("flatten", self._item, self._done, self._total))

    def clean(self, path: bytes, number: int) -> bytes:
        """A name without empty, ``.`` and ``..`` components; what begins at the root is taken from the image's.

        Raises:
            HostileImage: it leads out of the image.
        """
        parts: list[bytes] = []
        odd = path[:1] == b"/"
        for part in path.split(b"/"):
            if part == b"..":
                odd = True
                if not parts:
                    raise HostileImage(
                        f"{self.name(number)} has a name that leads out of the image",
                        show(path),
                        "Nothing was written. Do not use this image.",
                    )
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        if odd:
            self.report.note(f"{show(path)} is kept inside the image")
        return b"/".join(parts)

    def check_name(self, number: int, path: bytes, entry: Entry) -> None:
        """Whether Linux allows an entry's name and link target.

        Raises:
            HostileImage: it does not.
        """
        if len(path) > MAX_PATH or len(path.rpartition(b"/")[2]) > MAX_NAME:
            raise HostileImage(
                f"{self.name(number)} has a name that is longer than Linux allows", show(path[:200]) + "…"
            )
        if len(entry.link) > MAX_PATH or (entry.kind in LINKS and not entry.link):
            raise HostileImage(f"{self.name(number)} has a link with a target that Linux does not allow", show(path))

    def check_totals(self, entries: int, size: int, names: int) -> None:
        """Whether the layers so far keep within the limits.

        Raises:
            HostileImage: they do not.
        """
        limits = self.limits
        if entries > limits.entries or size > limits.size or names > limits.names:
            raise HostileImage(
                "The image is larger than the limits allow",
                f"More than {limits.entries} entries, {limits.size} bytes of content or {limits.names} bytes of names.",
                "If you trust it, raise max_entries or max_size in the configuration.",
            )

    def whiteout(self, base: bytes, number: int) -> bytes:
        """The name that a whiteout hides.

        Raises:
            HostileImage: it hides nothing that has a name.
        """
        if base in _EMPTY_WHITEOUTS:
            raise HostileImage(f"{self.name(number)} has a whiteout of no name", show(base))
        return base[4:]

    def dropped(self, path: bytes, entry: Entry) -> None:
        """Note what of an entry that is emitted no squashfs can hold."""
        for each in entry.dropped:
            self.report.note(f"{show(path)} is without its attribute {show(each)}")


def show(path: bytes) -> str:
    """A name as it can be printed: odd bytes escaped."""
    return os.fsdecode(path).encode("unicode_escape", "surrogateescape").decode("ascii", "backslashreplace") or "/"
