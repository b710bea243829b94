"""Merging layers: the merged tar as the standard library reads it, and the two ways of merging against each other."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import oci
from tests.support.layers import wild
from udi_core.changeset import Changes, FlattenReport, Limits
from udi_core.errors import UdiError
from udi_core.flatten import flatten
from udi_core.layer import LayerInput
from udi_core.manifest import Descriptor
from udi_core.merge import NeedsReplay, merge
from udi_core.progress import ignore
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
