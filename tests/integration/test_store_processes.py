"""Many processes and one store: one producer for each digest, dead ones taken over, nothing half done to be seen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.faulty_registry import FaultyRegistry, faulty_registry
from tests.support import oci
from tests.support.environment import small_disk
from udi_core import ImageReference, ImageStore, load_config, parse_platform, pull
from udi_core.store import Tag

pytestmark = pytest.mark.needs("tar2sqfs")

PROCESSES = 16
PATIENCE = 240.0  # seconds, on a machine that does much else


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[FaultyRegistry]:
    with faulty_registry(tmp_path / "served") as registry:
        files = [oci.file(f"file{number}", os.urandom(200_000)) for number in range(20)]
        registry.layout.add_image([oci.Layer.of(*files)])
        yield registry


def start(env: Mapping[str, str], *argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "udi_core", *argv]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def blobs(registry: FaultyRegistry) -> list[str]:
    """Requests for the layer, which is what a second producer would repeat."""
    (layer,) = registry.layout.read(registry.layout.find())["layers"]
    return [each for each in registry.requests if layer["digest"] in each]


def leftovers(store: str) -> list[str]:
    return sorted(os.listdir(os.path.join(store, "tmp")) + os.listdir(os.path.join(store, "locks")))


def test_many_pulls_of_one_image_are_one_download(faulty: FaultyRegistry, udi_env: dict[str, str]) -> None:
    started = [start(udi_env, "pull", "--quiet", faulty.reference()) for _ in range(PROCESSES)]
    ended = [each.communicate(timeout=PATIENCE) for each in started]
    assert [each.returncode for each in started] == [0] * PROCESSES, ended
    assert len({output for output, _ in ended}) == 1
    single = len(blobs(faulty))
    assert leftovers(udi_env["UDI_STORE"]) == []
    other = {**udi_env, "UDI_STORE": udi_env["UDI_STORE"] + "-other"}
    assert start(other, "pull", "--quiet", faulty.reference()).wait(PATIENCE) == 0
    assert len(blobs(faulty)) == 2 * single, "one pull alone asks for as much as all of them did"


def test_a_killed_producer_is_taken_over(faulty: FaultyRegistry, udi_env: dict[str, str]) -> None:
    dead = threading.Event()

    def held_up(digest: str, raw: bytes) -> bytes:
        if len(raw) > 1_000_000:
            dead.wait(PATIENCE)
        return raw

    faulty.damage = held_up
    producer = start(udi_env, "pull", "--quiet", faulty.reference())
    end = time.monotonic() + PATIENCE
    while not blobs(faulty):
        assert time.monotonic() < end and producer.poll() is None
        time.sleep(0.05)
    waiting = start(udi_env, "pull", faulty.reference())
    store = ImageStore(udi_env["UDI_STORE"])
    assert not list(store.images()), "nothing is to be seen before it is whole"
    producer.send_signal(signal.SIGKILL)
    producer.wait()
    dead.set()
    _, told = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 0, told
    image = store.lookup(ImageReference.parse(faulty.reference()))
    assert start(udi_env, "verify", f"id:{image.digest[7:]}").wait(PATIENCE) == 0
    done = start(udi_env, "gc", "--grace", "0", "--json").communicate(timeout=PATIENCE)[0]
    assert len(json.loads(done)["leftovers"]) == 1, "what the killed one left is for gc"
    assert leftovers(udi_env["UDI_STORE"]) == []


def test_killing_at_any_moment_leaves_a_store_that_works(faulty: FaultyRegistry, udi_env: dict[str, str]) -> None:
    store = ImageStore(udi_env["UDI_STORE"])
    for delay in (0.2, 0.3, 0.4, 0.5, 0.6):
        victim = start(udi_env, "pull", "--force", "--quiet", faulty.reference())
        time.sleep(delay)
        victim.kill()
        victim.wait()
        for image in store.images():
            assert os.path.getsize(image.squashfs) == image.size
    last = start(udi_env, "pull", "--quiet", faulty.reference())
    assert last.wait(PATIENCE) == 0
    assert start(udi_env, "verify", faulty.reference()).wait(PATIENCE) == 0


def test_gc_keeps_what_is_tagged_or_mounted(faulty: FaultyRegistry, udi_env: dict[str, str]) -> None:
    assert start(udi_env, "pull", "--quiet", faulty.reference()).wait(PATIENCE) == 0
    store = ImageStore(udi_env["UDI_STORE"])
    reference = ImageReference.parse(faulty.reference())
    digest = store.lookup(reference).digest
    assert store.gc(grace=0).images == ()
    store.untag(reference)
    assert store.gc(grace=0, busy=lambda each: each == digest).images == ()
    store.mark_use(digest, "another-node")
    assert store.gc(grace=0).images == ()
    store.unmark_use(digest, "another-node")
    assert store.gc(grace=0, dry_run=True).images == (digest,)
    assert list(store.images())
    assert store.gc(grace=0).images == (digest,)
    assert not list(store.images())


def test_two_platforms_of_a_tag_at_once(udi_env: dict[str, str], tmp_path: Path) -> None:
    layout = oci.Layout(tmp_path / "layout")
    images = [
        layout.add_image([oci.Layer.of(oci.file("level", each))], platform=f"linux/amd64{each}", tag=None)
        for each in ("", "/v2")
    ]
    layout.add_index(images)
    both = threading.Barrier(2)

    class Store(ImageStore):
        def tag(self, reference: ImageReference) -> Tag | None:
            found = super().tag(reference)
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(1)  # without turns, both read before either writes
            return found

    reference = ImageReference.parse(f"oci:{layout.path}")
    config = replace(load_config(udi_env), record_dir="")
    store = Store(udi_env["UDI_STORE"])
    threads = [
        threading.Thread(target=pull, args=(reference, store, config), kwargs={"platform": parse_platform(each)})
        for each in ("linux/amd64", "linux/amd64/v2")
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    found = ImageStore(store.root).tag(reference)
    assert found is not None and sorted(found.images) == ["linux/amd64", "linux/amd64/v2"]


def test_an_image_that_a_gc_took_while_it_was_tagged(
    udi_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = oci.Layout(tmp_path / "layout")
    layout.add_image([oci.Layer.of(oci.file("file", "x"))])
    store = ImageStore(udi_env["UDI_STORE"])
    set_tag = ImageStore.set_tag

    def late(self: ImageStore, *arguments: Any) -> None:
        monkeypatch.setattr(ImageStore, "set_tag", set_tag)
        assert len(store.gc(grace=0).images) == 1
        set_tag(self, *arguments)

    monkeypatch.setattr(ImageStore, "set_tag", late)
    image = pull(ImageReference.parse(f"oci:{layout.path}"), store, replace(load_config(udi_env), record_dir=""))
    assert os.path.isfile(image.squashfs)


@pytest.mark.root
@pytest.mark.needs("mount")
def test_a_store_without_room_for_a_lease(faulty: FaultyRegistry, udi_env: dict[str, str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        with contextlib.suppress(OSError), open(disk / "fill", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        producer = start({**udi_env, "UDI_STORE": str(disk / "store")}, "pull", faulty.reference())
        _, said = producer.communicate(timeout=PATIENCE)
        assert producer.returncode == 74 and "No space is left in the store" in said
        assert leftovers(str(disk / "store")) == []
