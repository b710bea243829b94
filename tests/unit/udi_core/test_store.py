"""The store's records: whose image a node gets, and what damage does."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

import udi_core.store
from udi_core import ImageAbsent, ImageReference, ImageStore, Platform, StoredImage, StoreError, StoreFull
from udi_core.image_config import ImageConfig
from udi_core.platforms import parse_platform
from udi_core.store import GcReport

REFERENCE = ImageReference.parse("lab/reco:1")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "store"))


def publish(store: ImageStore, number: int, built: str = "linux/amd64", *, anew: bool = False) -> StoredImage:
    digest = f"sha256:{number:064x}"
    with store.staging(digest) as staging:
        path = store.staged_squashfs(staging)
        Path(path).write_bytes(b"x" * 100)
        image = StoredImage(
            digest=digest,
            squashfs=path,
            size=100,
            squashfs_sha256=hashlib.sha256(b"x" * 100).hexdigest(),
            config=ImageConfig(platform=parse_platform(built)),
            created=udi_core.store.now(),
            reference=str(REFERENCE),
        )
        return store.publish(staging, image, anew=anew)


def on(monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    monkeypatch.setattr(udi_core.store, "host_platform", lambda: parse_platform(node))


def pulled(store: ImageStore, *images: tuple[str, StoredImage]) -> None:
    for wanted, image in images:
        store.set_tag(REFERENCE, "sha256:" + "e" * 64, parse_platform(wanted), image)


@pytest.mark.parametrize(
    ("node", "number"),
    [
        ("linux/amd64/v4", 3),  # what was pulled for it
        ("linux/amd64/v3", 3),  # the best that it runs, though a v4 node pulled it
        ("linux/amd64/v2", 1),  # pulled for it, and the last pull was another node's
        ("linux/amd64", 1),
        ("linux/arm64/v8", 7),
    ],
)
def test_a_node_gets_what_it_can_run(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, node: str, number: int
) -> None:
    plain, third, arm = publish(store, 1), publish(store, 3, "linux/amd64/v3"), publish(store, 7, "linux/arm64")
    pulled(store, ("linux/amd64/v4", third), ("linux/amd64/v2", plain), ("linux/arm64/v8", arm))
    on(monkeypatch, node)
    assert store.lookup(REFERENCE).digest == f"sha256:{number:064x}"


def test_a_node_that_can_run_nothing_is_told_for_whom_it_was_pulled(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled(store, ("linux/amd64/v4", publish(store, 4, "linux/amd64/v4")))
    on(monkeypatch, "linux/amd64/v2")
    with pytest.raises(ImageAbsent, match="linux/amd64/v4"):
        store.lookup(REFERENCE)
    with pytest.raises(ImageAbsent):
        store.lookup(REFERENCE, Platform(architecture="arm64"))


def test_a_tag_that_moved_forgets_the_images_of_all_platforms(store: ImageStore) -> None:
    pulled(store, ("linux/amd64", publish(store, 1)))
    store.set_tag(REFERENCE, "sha256:" + "f" * 64, Platform(architecture="arm64"), publish(store, 7, "linux/arm64"))
    tag = store.tag(REFERENCE)
    assert tag and list(tag.images) == ["linux/arm64"]


DAMAGED = ["", "{}", "[]", "null", '{"config": []}', "[" * 100_000, "\0"]


@pytest.mark.parametrize("text", DAMAGED, ids=[f"damaged{number}" for number in range(len(DAMAGED))])
def test_damaged_records_are_errors_that_can_be_mended(store: ImageStore, text: str) -> None:
    image = publish(store, 1)
    pulled(store, ("linux/amd64", image))
    Path(image.squashfs).with_name("image.json").write_text(text)
    with pytest.raises(StoreError, match="--force"):
        store.image(image.digest)
    assert list(store.images()) == []
    tag = next(Path(store.root, "tags").rglob("*.json"))
    tag.write_text(text)
    with pytest.raises(StoreError, match="Pull it again"):
        store.tag(REFERENCE)
    pulled(store, ("linux/amd64", publish(store, 2)))
    assert store.lookup(REFERENCE, Platform()).digest == f"sha256:{2:064x}"
    store.remove(image.digest)
    with pytest.raises(ImageAbsent):
        store.image(image.digest)


def test_gc_takes_damaged_images_too(store: ImageStore) -> None:
    image = publish(store, 1)
    Path(image.squashfs).with_name("image.json").unlink()
    assert store.gc(grace=0).images == (image.digest,)
    assert list(Path(store.root, "images").rglob("*.squashfs")) == []


def test_marks_of_use_count_for_longer_than_a_job(store: ImageStore) -> None:
    image = publish(store, 1)
    mark = store.mark_use(image.digest, "node1")
    week = time.time() - 7 * 86400
    os.utime(mark, (week, week))
    assert store.gc(grace=0).images == ()
    with pytest.raises(StoreError, match="node1"):
        store.remove(image.digest)
    month = time.time() - 30 * 86400
    os.utime(mark, (month, month))
    assert store.gc(grace=0).images == (image.digest,)


def test_records_of_earlier_versions_are_read(store: ImageStore) -> None:
    image = publish(store, 1)
    pulled(store, ("linux/amd64", image))
    path = next(Path(store.root, "tags").rglob("*.json"))
    document = json.loads(path.read_text())
    del document["built"]
    path.write_text(json.dumps(document))
    assert store.lookup(REFERENCE, Platform()) == image


def test_a_record_of_a_later_version_is_left_alone(store: ImageStore) -> None:
    image = publish(store, 1)
    path = Path(image.squashfs).with_name("image.json")
    path.write_text(json.dumps({"version": 2, "squashfs": {}}))
    with pytest.raises(StoreError, match="version 2"):
        store.image(image.digest)
    assert list(store.images()) == []


@pytest.mark.parametrize("field", ["env", "labels", "platform", "entrypoint", "diff_ids"])
def test_a_record_whose_config_is_damaged(store: ImageStore, field: str) -> None:
    image = publish(store, 1)
    path = Path(image.squashfs).with_name("image.json")
    document = json.loads(path.read_text())
    document["config"][field] = 7
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="--force"):
        store.image(image.digest)


def test_made_anew_a_sound_file_stays_and_a_damaged_one_goes(store: ImageStore) -> None:
    image = publish(store, 1)
    before = os.stat(image.squashfs).st_ino
    Path(image.squashfs).with_name("image.json").write_text("{")
    assert publish(store, 1, anew=True).squashfs == image.squashfs
    assert os.stat(image.squashfs).st_ino == before, "nodes that have it mounted keep it"
    os.chmod(image.squashfs, 0o644)
    Path(image.squashfs).write_bytes(b"damaged")
    publish(store, 1, anew=True)
    assert Path(image.squashfs).read_bytes() == b"x" * 100
    assert os.listdir(os.path.join(store.root, "tmp")) == []


def test_gc_leaves_what_a_living_process_makes(store: ImageStore) -> None:
    digest = f"sha256:{7:064x}"
    with store.staging(digest) as staging:
        lease = Path(store.lease_path(digest))
        lease.write_text("{}")
        assert store.gc(grace=0).leftovers == () and os.path.isdir(staging)
        long_ago = time.time() - 100
        os.utime(lease, (long_ago, long_ago))
        assert store.gc(grace=0).leftovers == (os.path.basename(staging),)


def test_gc_goes_by_the_clock_of_the_file_server(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, 1)
    with store.staging(f"sha256:{7:064x}"):
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 7200)  # this node's is two hours ahead
        assert store.gc() == GcReport()


def test_what_a_node_mounts_while_it_is_removed_stays(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    image = publish(store, 1)
    pulled(store, ("linux/amd64", image))
    bury = store._bury

    def late(digest: str) -> str:
        store.mark_use(digest, "node1")
        return bury(digest)

    monkeypatch.setattr(store, "_bury", late)
    with pytest.raises(StoreError, match="node1"):
        store.remove(image.digest)
    assert store.lookup(REFERENCE, Platform()) == image
    assert os.listdir(os.path.join(store.root, "tmp")) == []


def test_gc_puts_back_what_was_named_meanwhile(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    image, other = publish(store, 1), publish(store, 2)
    read = store._named

    def named() -> set[str]:
        found = read()
        pulled(store, ("linux/amd64", image))  # by another process, just after the tags were read
        return found

    monkeypatch.setattr(store, "_named", named)
    assert store.gc(grace=0).images == (other.digest,)
    assert store.image(image.digest) == image
    assert os.listdir(os.path.join(store.root, "tmp")) == []


def test_two_gcs_at_once_and_files_that_are_no_images(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    image = publish(store, 1)
    Path(os.path.dirname(image.squashfs), "..", ".nfs0001").write_text("removed, and open elsewhere")
    rename = os.rename

    def faster(source: str, target: str) -> None:
        rename(source, target + ".other")
        rename(source, target)

    monkeypatch.setattr(os, "rename", faster)
    assert store.gc(grace=0).images == ()


def test_a_tag_that_cannot_be_written_leaves_nothing(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    image = publish(store, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFull):
        pulled(store, ("linux/amd64", image))
    assert [names for where in ("tags", "tmp") for *_, names in os.walk(os.path.join(store.root, where)) if names] == []


def test_gc_sweeps_leases_of_the_dead(store: ImageStore) -> None:
    store.prepare()
    dead, alive = (Path(store.lease_path(f"sha256:{number:064x}")) for number in (1, 2))
    for path in (dead, alive):
        path.write_text("{}")
    hour = time.time() - 3700
    os.utime(dead, (hour, hour))
    assert store.gc(grace=0, dry_run=True).leftovers == (dead.name,) and dead.exists()
    assert store.gc(grace=0).leftovers == (dead.name,)
    assert not dead.exists() and alive.exists()
