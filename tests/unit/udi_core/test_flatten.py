"""Merging layers: the merged tar as the standard library reads it, and the two ways of merging against each other."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from tests.support import oci
from tests.support.layers import wild
from udi_core.changeset import Changes, FlattenReport, Limits
from udi_core.errors import CorruptImage, HostileImage, UdiError
from udi_core.flatten import flatten
from udi_core.layer import LayerInput
from udi_core.manifest import Descriptor
from udi_core.merge import NeedsReplay, merge
from udi_core.progress import Progress, ignore
from udi_core.replay import replay


def inputs(layers: list[oci.Layer]) -> list[LayerInput]:
    def one(layer: oci.Layer) -> LayerInput:
        blob = oci.compress(layer.data, layer.compression)
        descriptor = Descriptor(
            media_type=oci.layer_type(layer.compression), digest=oci.digest_of(blob), size=len(blob)
        )
        chunks = [blob[start : start + 5000] for start in range(0, len(blob), 5000)]
        return LayerInput(
            descriptor=descriptor, diff_id=layer.diff_id or oci.digest_of(layer.data), open=lambda: iter(chunks)
        )

    return [one(layer) for layer in layers]


class Sink:
    """Outputs of a merge; only the last counts."""

    def __init__(self) -> None:
        self.data = bytearray()

    def __call__(self) -> Callable[[bytes | memoryview], object]:
        self.data = bytearray()
        return self.data.extend


def merged(*layers: oci.Layer, limits: Limits | None = None) -> tuple[dict[str, Any], FlattenReport]:
    sink = Sink()
    report = flatten(inputs(list(layers)), sink, limits=limits)
    return tree(sink.data), report


def tree(data: bytes | bytearray) -> dict[str, Any]:
    """What a merged tar unpacks to: path -> type, mode, owner, time, content or target, and the path it shares."""
    found: dict[str, Any] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        links = {}
        for info in archive:
            path = info.name.removeprefix("./").strip("/")
            if path in (".", ""):
                path = ""
            assert path not in found or path == "", f"{path} is there twice"
            if info.islnk():
                links[path] = info.linkname.strip("/").removeprefix("./")
                found[path] = None
                continue
            content: Any = info.linkname
            if info.isreg():
                file = archive.extractfile(info)
                assert file is not None
                content = hashlib.sha256(file.read()).hexdigest()
            elif info.isdev():
                content = info.devmajor, info.devminor
            xattrs = {key: value for key, value in info.pax_headers.items() if key.startswith("SCHILY")}
            found[path] = (info.type, info.mode, info.uid, info.gid, int(info.mtime), content, xattrs)
    for path in links:
        target = path
        while target in links:
            target = links[target]
        found[path] = found[target]
    shared: dict[str, list[str]] = {}
    for path in found:
        target = path
        while target in links:
            target = links[target]
        shared.setdefault(target, []).append(path)
    return {path: (*found[path], min(each)) for each in shared.values() for path in each}


def contents(found: dict[str, Any]) -> set[str]:
    return set(found) - {""}


@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_both_ways_of_merging_agree(first: int) -> None:
    agreed = 0
    for seed in range(first, first + 100):
        layers = inputs(wild(seed))
        quick, thorough = bytearray(), bytearray()
        try:
            merge(Changes(layers, quick.extend, Limits(), ignore))
            replay(Changes(layers, thorough.extend, Limits(), ignore))
        except (NeedsReplay, UdiError):
            continue  # the one cannot do it, or nobody can
        ours, theirs = tree(quick), tree(thorough)
        assert ours == theirs, seed
        agreed += 1
    assert agreed > 10


def refused(kind: type[UdiError], *layers: oci.Layer, limits: Limits | None = None) -> str:
    with pytest.raises(kind) as caught:
        merged(*layers, limits=limits)
    assert caught.type is kind
    return str(caught.value)


def test_upper_layers_win() -> None:
    base = oci.Layer.of(oci.directory("d", uid=1), oci.file("d/a", "old"), oci.file("d/b", "b"), oci.file("d/c", "c"))
    middle = oci.Layer.of(oci.directory("d", uid=2), oci.file("d/a", "new"), oci.whiteout("d/b"))
    top = oci.Layer.of(oci.directory("d", uid=3), oci.whiteout("d/c"), oci.file("d/b", "again"))
    found, report = merged(base, middle, top)
    assert contents(found) == {"d", "d/a", "d/b"}
    assert found["d"][2] == 3
    assert found["d/a"][5] == hashlib.sha256(b"new").hexdigest()
    assert found["d/b"][5] == hashlib.sha256(b"again").hexdigest()
    assert report.entries == 3
    assert report.notes == []


def test_a_hidden_target_of_visible_links_is_fetched_once_more() -> None:
    base = oci.Layer.of(
        oci.file("pkgs", "content", uid=7), oci.hardlink("one", "pkgs"), oci.hardlink("two", "pkgs"), oci.file("x", "x")
    )
    opened: list[int] = []
    layers = inputs([base, oci.Layer.of(oci.whiteout("pkgs"))])
    counted = [
        LayerInput(
            descriptor=each.descriptor,
            diff_id=each.diff_id,
            open=lambda each=each, number=number: (opened.append(number), each.open())[1],  # type: ignore[misc]
        )
        for number, each in enumerate(layers)
    ]
    sink = Sink()
    flatten(counted, sink)
    found = tree(sink.data)
    assert contents(found) == {"one", "two", "x"}
    assert found["one"] == found["two"]
    assert found["one"][2] == 7
    assert opened == [1, 0, 0]


def test_a_directory_that_nobody_declares_is_there_when_it_is_empty() -> None:
    found, _ = merged(oci.Layer.of(oci.file("d/e/f", "x")), oci.Layer.of(oci.whiteout("d/e/f")))
    assert contents(found) == {"d", "d/e"}


def test_programs_and_bytecode_are_reported() -> None:
    base = oci.Layer.of(
        oci.file("usr/bin/python3.12", "ELF"),
        oci.symlink("usr/bin/python3", "python3.12"),
        oci.hardlink("opt/conda/bin/python", "usr/bin/python3.12"),
        oci.file("usr/bin/pythonic", ""),
        oci.file("bin/sh", "ELF"),
        oci.file("usr/lib/python3.12/__pycache__/os.cpython-312.pyc", bytes.fromhex("cb0d0d0a") + b"rest"),
        oci.file("usr/lib/python3.12/__pycache__/re.cpython-312.opt-1.pyc", b"junk"),
    )
    expected = {
        "usr/bin/python3.12": None,
        "usr/bin/python3": "python3.12",
        "opt/conda/bin/python": "/usr/bin/python3.12",
        "bin/sh": None,
    }
    _, report = merged(base)
    assert report.programs == expected
    assert report.bytecode == {"cpython-312": bytes.fromhex("cb0d0d0a")}
    # Written twice: the other way of merging finds the same.
    twice = oci.Layer.of(oci.file("bin/sh", "old"), oci.file("bin/sh", "new"))
    _, report = merged(base, twice)
    assert report.programs | {"opt/conda/bin/python": None} == expected | {"opt/conda/bin/python": None}
    assert report.bytecode == {"cpython-312": bytes.fromhex("cb0d0d0a")}


@pytest.mark.parametrize(
    ("upper", "items"),
    [
        (oci.Layer.of(oci.file("other", "x")), ["layers"]),
        (oci.Layer.of(oci.whiteout("f")), ["layers", "layers with hidden files"]),
        (oci.Layer.of(oci.file("s/x", "x")), ["layers", "layers again"]),
    ],
)
def test_progress_is_in_compressed_bytes_and_never_goes_back(upper: oci.Layer, items: list[str]) -> None:
    events: list[Progress] = []
    base = oci.Layer.of(oci.file("f", b"x" * 20000), oci.hardlink("g", "f"), oci.symlink("s", "d"), oci.directory("d"))
    layers = inputs([base, upper])
    flatten(layers, Sink(), progress=events.append)
    assert list(dict.fromkeys(event.item for event in events)) == items
    for item in items:
        done = [event.done for event in events if event.item == item]
        assert done == sorted(done)
    assert events[-1].done == events[-1].total
    sizes = [layer.descriptor.size for layer in layers]
    assert events[-1].total == {"layers": sum(sizes), "layers again": 2 * sum(sizes)}.get(items[-1], sizes[0])


# Names and links that lead elsewhere


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/../evil", "./../evil"])
def test_names_that_leave_the_image_are_refused(name: str) -> None:
    assert "leads out of the image" in refused(HostileImage, oci.Layer.of(oci.file(name, "x")))


@pytest.mark.parametrize("target", ["../../etc/shadow", "a/../../x"])
def test_hard_links_that_leave_the_image_are_refused(target: str) -> None:
    layer = oci.Layer.of(oci.file("f", "x"), oci.hardlink("l", target))
    assert "leads out of the image" in refused(HostileImage, layer)


def test_names_that_only_look_so_are_kept_inside_and_said() -> None:
    layer = oci.Layer.of(
        oci.file("/etc/passwd", "x"), oci.directory("a"), oci.file("a/../b", "y"), oci.file("..c", "z")
    )
    found, report = merged(layer)
    assert contents(found) == {"etc", "etc/passwd", "a", "b", "..c"}
    assert report.notes == ["/etc/passwd is kept inside the image", "a/../b is kept inside the image"]


@pytest.mark.parametrize("target", ["/etc", "../../../etc", "etc/../../etc"])
def test_names_through_symlinks_stay_inside(target: str) -> None:
    base = oci.Layer.of(oci.directory("etc"), oci.file("etc/passwd", "old"), oci.symlink("s", target))
    found, report = merged(base, oci.Layer.of(oci.file("s/passwd", "new")))
    assert contents(found) == {"etc", "etc/passwd", "s"}
    assert found["etc/passwd"][5] == hashlib.sha256(b"new").hexdigest()
    assert any("leads through a symlink to etc" in note for note in report.notes)


def test_symlinks_that_lead_to_themselves_are_refused() -> None:
    base = oci.Layer.of(oci.symlink("a", "b"), oci.symlink("b", "a"))
    assert "leads to itself" in refused(HostileImage, base, oci.Layer.of(oci.file("a/x", "x")))


def test_entries_below_a_file_are_refused() -> None:
    assert "below a file" in refused(HostileImage, oci.Layer.of(oci.file("f", "x")), oci.Layer.of(oci.file("f/x", "x")))
    assert "below a file" in refused(HostileImage, oci.Layer.of(oci.file("f", "x"), oci.file("f/x", "x")))


def test_the_root_stays_a_directory() -> None:
    for entry in (oci.symlink("./", "/etc"), oci.file("/", "x"), oci.device(".", 1, 3)):
        assert "root of the image" in refused(HostileImage, oci.Layer.of(entry))


@pytest.mark.parametrize("name", [".wh.", "a/.wh..", "a/.wh..."])
def test_whiteouts_of_no_name_are_refused(name: str) -> None:
    layer = oci.Layer.of(oci.directory("a"), oci.file("a/b", "x"))
    assert "whiteout of no name" in refused(HostileImage, layer, oci.Layer.of(oci.file(name)))


@pytest.mark.parametrize("entry", [oci.hardlink("l", "none"), oci.hardlink("l", "l"), oci.hardlink("l", "d")])
def test_hard_links_to_nothing_are_refused(entry: oci.Entry) -> None:
    assert "hard link to" in refused(CorruptImage, oci.Layer.of(oci.directory("d"), entry))


# Bombs


def test_names_that_linux_does_not_allow_are_refused() -> None:
    for name in ("n" * 256, "/".join(["n" * 200] * 21), "d/" * 2048 + "f"):
        assert "longer than Linux allows" in refused(HostileImage, oci.Layer.of(oci.file(name)))
    found, _ = merged(oci.Layer.of(oci.file("n" * 255), oci.file("d/" * 2000 + "f")))
    assert len(found) == 2003
    for link in ("", "t" * 4096):
        assert "target" in refused(HostileImage, oci.Layer.of(oci.symlink("l", link)))


@pytest.mark.parametrize("limits", [Limits(entries=2), Limits(size=9), Limits(names=5)])
def test_limits_are_kept(limits: Limits) -> None:
    layer = oci.Layer.of(*(oci.file(f"f{n}", "abcd") for n in range(3)))
    assert "raise max_" in refused(HostileImage, layer, limits=limits)
    twice = oci.Layer.of(oci.file("f0", "abcd"), oci.file("f0", "abcd"), oci.file("f1", "abcd"))
    assert "raise max_" in refused(HostileImage, twice, limits=limits)


def test_sparse_files_count_with_their_holes() -> None:
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 60)}
    layer = oci.Layer.of(oci.file("s", b"1\n0\n0\n".ljust(512, b"\0"), pax_headers=fields))
    assert "raise max_" in refused(HostileImage, layer)


@pytest.mark.parametrize(("way", "name"), [(merge, "file"), (merge, ".wh.file"), (replay, "file")])
@pytest.mark.parametrize("limits", [Limits(entries=10_000), Limits(names=10_000_000)])
def test_directories_that_nothing_declares_count_too(way: Any, name: str, limits: Limits) -> None:
    """Each entry lies a thousand directories deep: its own name is next to nothing of what merging takes."""
    layer = oci.Layer.of(*(oci.file(f"{number:03}/" + "d/" * 1000 + name) for number in range(100)))
    with pytest.raises(HostileImage, match="larger than the limits"):
        way(Changes(inputs([layer]), lambda data: None, limits, ignore))


def test_bombs_are_refused() -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 40
    compressor = zstandard.ZstdCompressor().compressobj()
    blob = compressor.compress(info.tobuf(tarfile.GNU_FORMAT))
    blob += b"".join(compressor.compress(bytes(1 << 24)) for _ in range(70)) + compressor.flush()
    descriptor = Descriptor(media_type=oci.layer_type("zstd"), digest=oci.digest_of(blob), size=len(blob))
    layer = LayerInput(descriptor=descriptor, diff_id=oci.digest_of(b""), open=lambda: iter([blob]))
    with pytest.raises(HostileImage, match="is a bomb"):
        flatten([layer], lambda: lambda data: None)
