"""What goes wrong for a user: each is one error of three parts with its exit code, and the store is as it was."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import udi_core.web
from tests.fakes.faulty_registry import FaultyRegistry, faulty_registry
from tests.support import oci
from tests.support.command import three_parts, tree, udi, udi_here
from tests.support.environment import small_disk
from tests.support.user import OrdinaryUser

pytestmark = pytest.mark.needs("tar2sqfs", "unsquashfs")


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyRegistry]:
    monkeypatch.setattr(udi_core.web.random, "uniform", lambda low, high: 0.0)  # what waits between tries
    with faulty_registry(tmp_path / "served") as registry:
        registry.layout.add_image([oci.Layer.of(oci.directory("bin"), oci.file("bin/data", os.urandom(3_000_000)))])
        yield registry


@pytest.fixture
def refused(faulty: FaultyRegistry, udi_env: dict[str, str]) -> Iterator[Callable[..., None]]:
    """``refused(tag, code, *words)``: pulling a tag fails like that; at the end the store must be empty."""

    def check(tag: str, code: int, *words: str, **variables: str) -> None:
        three_parts(udi_here("pull", faulty.reference(tag), env={**udi_env, **variables}), code, *words)
        assert tree(udi_env["UDI_STORE"]) == [], tag

    yield check


BAD_REFERENCES = [
    "",
    " ubuntu",
    "team/UPPER:x",
    "name:bad tag",
    "host:99999999/x",
    "host:5000/",
    "x@sha256:12",
    "x@md5:" + "0" * 32,
    "a//b",
    "-x/y",
    "x:" + "t" * 129,
    "ftp://x/y",
    "./path",
    "id:zz",
    "oci:",
    "x\0y",
    "x\x1b[31m",
    "\udcff/x",
]


def test_malformed_references_show_a_right_one(udi_env: dict[str, str]) -> None:
    for reference in BAD_REFERENCES:
        three_parts(udi_here("pull", "--", reference, env=udi_env), 2, "is not an image reference")
    three_parts(udi("pull", "team/UPPER:x", env=udi_env), 2, "upper-case", "Right ones look like")


def test_an_unknown_tag(faulty: FaultyRegistry, udi_env: dict[str, str], refused: Callable[..., None]) -> None:
    refused("nosuchtag", 66, "nosuchtag", "does not exist")
    three_parts(udi("run", faulty.reference("nosuchtag"), "--", "true", env=udi_env), 125, "nosuchtag")


def test_no_permission(faulty: FaultyRegistry, refused: Callable[..., None]) -> None:
    faulty.status = 403
    refused("latest", 77, "DENIED", "udi login")
    refused("latest", 77, "udi login", UDI_USERNAME="me", UDI_PASSWORD="hunter2")


def test_a_registry_that_is_down(faulty: FaultyRegistry, udi_env: dict[str, str], refused: Callable[..., None]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        done = udi_here("pull", f"docker:127.0.0.1:{port}/x", env=udi_env)
    three_parts(done, 69, "cannot be reached", f"127.0.0.1:{port}", "Connection refused")
    faulty.status = 503
    refused("latest", 69, "503")


def test_a_connection_that_is_cut_in_the_middle_of_a_blob(
    faulty: FaultyRegistry, udi_env: dict[str, str], refused: Callable[..., None]
) -> None:
    faulty.stop_at = 1_000_000
    refused("latest", 69, "again and again", "1000000 of")
    faulty.stop_at, faulty.cut_after = 0, 300_000
    done = udi("pull", faulty.reference(), env=udi_env)
    assert done.returncode == 0, "what is cut but goes on is resumed: " + done.stderr


def test_wrong_digests(faulty: FaultyRegistry, refused: Callable[..., None]) -> None:
    faulty.layout.add_image([oci.Layer.of(oci.file("x", os.urandom(100_000)), compression="")], tag="plain")
    faulty.damage = lambda digest, raw: raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:] if len(raw) > 5000 else raw
    refused("plain", 65, "digest promises", "expected sha256:")
    # Whatever the decompressor makes of it: the blob was damaged on its way.
    refused("latest", 65, "digest promises")
    faulty.damage = lambda digest, raw: raw if len(raw) > 1000 else raw + b" "
    refused("latest", 65, "digest promises")
    faulty.damage = None
    layer = oci.Layer.of(oci.file("x", "x"))
    layer.diff_id = "sha256:" + "0" * 64
    faulty.layout.add_image([layer], tag="diff-id")
    refused("diff-id", 65, "digest promises")
    manifest = faulty.layout.blob_path(faulty.layout.find("latest")["digest"])
    manifest.write_bytes(manifest.read_bytes().replace(b"schemaVersion", b"schemaVersiom"))
    refused(f"latest@{faulty.layout.find('latest')['digest']}", 65, "digest promises")


WHOLE = oci.tar([oci.directory("d"), oci.file("d/x", os.urandom(200_000)), oci.file("d/y", b"y" * 5000)])
GZIP, ZSTD = oci.compress(WHOLE, "gzip"), oci.compress(WHOLE, "zstd")
CORRUPT: dict[str, tuple[bytes, str]] = {
    "gzip-head": (GZIP[:5], "gzip"),
    "gzip-middle": (GZIP[:100_000], "gzip"),
    "gzip-without-its-checksum": (GZIP[:-4], "gzip"),
    "gzip-flipped": (
        GZIP[:90_000] + b"\xff" * 50 + GZIP[90_050:],
        "gzip",
    ),
    "zstd-middle": (ZSTD[:100_000], "zstd"),
    "zstd-flipped": (
        ZSTD[:90_000] + b"\xff" * 50 + ZSTD[90_050:],
        "zstd",
    ),
    "tar-in-a-header": (WHOLE[:700], ""),
    "tar-in-content": (WHOLE[:50_000], ""),
    "plain-that-says-gzip": (WHOLE, "gzip"),
    "gzip-that-says-zstd": (GZIP, "zstd"),
    "no-tar": (b"hello world " * 1000, ""),
    "html": (b"<html>Sign in to the hotel's network</html>", "gzip"),
}


def test_truncated_and_corrupt_layers(faulty: FaultyRegistry, refused: Callable[..., None]) -> None:
    for name, (data, kind) in CORRUPT.items():
        blob = faulty.layout.add_blob(data, oci.layer_type(kind))  # type: ignore[arg-type]
        faulty.layout.add_layers([blob], diff_ids=[oci.digest_of(WHOLE)], tag=name)
        refused(name, 65, "ayer ")


def test_manifests_of_the_wrong_kind(faulty: FaultyRegistry, refused: Callable[..., None]) -> None:
    layout, digest = faulty.layout, "sha256:" + "0" * 64
    good = layout.read(layout.find("latest"))
    documents: dict[str, tuple[Any, str]] = {
        "schema1": ({"schemaVersion": 1, "fsLayers": []}, "schema 1"),
        "artifact": ({**good, "artifactType": "application/spdx+json"}, "artifact"),
        "list": ([], "not a JSON object"),
        "deep": (b'{"layers":' * 50_000, "not JSON"),
        "page": (b"<html>Sign in</html>", "not JSON"),
        "no-layers": ({"schemaVersion": 2, "config": good["config"]}, "malformed"),
        "huge-layer": ({**good, "layers": [{**good["layers"][0], "size": 1 << 62}]}, "malformed"),
        "number": ({**good, "layers": [{**good["layers"][0], "size": 1e999}]}, "malformed"),
        "odd-layer": ({**good, "layers": [{**good["layers"][0], "mediaType": "image/png"}]}, "image/png"),
        "more-layers": ({**good, "layers": good["layers"] * 2}, "does not fit"),
        "no-config": ({**good, "config": {**good["config"], "digest": digest}}, digest),
        "large": (b" " * (5 << 20), "larger than"),
    }
    for name, (document, said) in documents.items():
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        layout.tag(layout.add_blob(raw, oci.OCI_MANIFEST), name)
        refused(name, 69 if name == "no-config" else 65, said)


def test_configs_of_the_wrong_kind(faulty: FaultyRegistry, refused: Callable[..., None]) -> None:
    layout = faulty.layout
    good = layout.read(layout.find("latest"))
    config = layout.read(good["config"])
    documents: list[tuple[Any, str]] = [
        (b"[" * 100_000, "not JSON"),
        (b"", "not JSON"),
        ({**config, "rootfs": {}}, "malformed"),
        ({**config, "config": {"Env": [5]}}, "malformed"),
        ({**config, "config": {"Entrypoint": {"a": 1}}}, "malformed"),
        ({**config, "config": {"WorkingDir": "/\0"}}, "malformed"),
        ({**config, "rootfs": {"diff_ids": []}}, "does not fit"),
        ({**config, "architecture": "pdp11"}, "pdp11"),
        ({**config, "os": "windows"}, "windows"),
    ]
    for number, (document, said) in enumerate(documents):
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        described = layout.add_blob(raw, good["config"]["mediaType"])
        layout.tag(layout.add_blob(json.dumps({**good, "config": described}).encode(), oci.OCI_MANIFEST), f"c{number}")
        refused(f"c{number}", 65, said)


def test_indexes_of_the_wrong_kind(faulty: FaultyRegistry, refused: Callable[..., None]) -> None:
    layout = faulty.layout
    foreign = layout.add_image([oci.Layer.of(oci.file("x", "x"))], tag=None, platform="linux/s390x")
    layout.add_index([foreign], tag="foreign")
    refused("foreign", 65, "linux/s390x", "--platform")
    layout.add_index([], tag="empty")
    refused("empty", 65)
    inner = foreign.descriptor
    for _ in range(6):
        inner = {**layout.add_index([inner], tag=None), "platform": {"os": "linux", "architecture": "amd64"}}
    layout.add_index([inner], tag="nested")
    refused("nested", 65)
    three = json.dumps({"manifests": [{"digest": "sha256:" + "0" * 64, "size": 1}] * 3}).encode()
    layout.tag(layout.add_blob(three, oci.OCI_INDEX), "unnamed")
    refused("unnamed", 65, "cannot choose")


def raw_entry(name: bytes, kind: bytes = b"0", size: int = 0, content: bytes = b"", link: bytes = b"") -> bytes:
    """A tar entry whose header says what tarfile would not write."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    header[0:100] = name[:100].ljust(100, b"\0")
    header[157:257] = link[:100].ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "dots": (oci.tar([oci.file("../../etc/passwd", "evil")]), "leads out of the image"),
    "dots-inside": (oci.tar([oci.file("a/../../x", "evil")]), "leads out of the image"),
    "absolute-dots": (oci.tar([oci.file("/../x", "evil")]), "leads out of the image"),
    "hard-link-out": (oci.tar([oci.hardlink("x", "../../../etc/shadow")]), "leads out of the image"),
    "whiteout-out": (oci.tar([oci.file("../.wh.etc")]), "leads out of the image"),
    "whiteout-dots": (oci.tar([oci.directory("a"), oci.file("a/.wh...")]), "whiteout"),
    "whiteout-dot": (oci.tar([oci.directory("a"), oci.file("a/.wh..")]), "whiteout"),
    "whiteout-nothing": (oci.tar([oci.directory("a"), oci.file("a/.wh.")]), "whiteout"),
    "controls": (oci.tar([oci.file("../\x1b]0;evil\x07\x1b[2J", "evil")]), "leads out of the image"),
    "root-is-a-file": (raw_entry(b"./", size=0) + bytes(1024), ""),
    "long-component": (oci.tar([oci.file("n" * 300, "x")]), ""),
    "long-path": (oci.tar([oci.file("/".join(["d" * 200] * 30), "x")]), ""),
    "deep-path": (oci.tar([oci.file("d/" * 100_000 + "x", "x")]), ""),
    "long-link": (oci.tar([oci.symlink("x", "t" * 70_000)]), ""),
    "unknown-type": (raw_entry(b"x", b"Z") + bytes(1024), "unknown type"),
    "huge-file": (raw_entry(b"x", size=0o77777777777) + bytes(4096), ""),
    "huge-name": (raw_entry(b"././@LongLink", b"L", size=0o77777777777) + bytes(4096), ""),
    "huge-header": (raw_entry(b"x", b"x", size=0o77777777777) + bytes(4096), ""),
    "odd-records": (raw_entry(b"x", b"x", 20, b"99999999999 path=../x") + raw_entry(b"y") + bytes(1024), ""),
    "negative": (
        raw_entry(b"x", b"x", 12, b"12 size=-50\n") + raw_entry(b"y") + bytes(1024),
        "negative",
    ),
    "owner": (oci.tar([oci.file("x", "x", pax_headers={"uid": str(1 << 40)})]), "owner"),
}


def test_hostile_layers(faulty: FaultyRegistry, refused: Callable[..., None]) -> None:
    for name, (data, said) in HOSTILE.items():
        faulty.layout.add_image([oci.Layer(data=data)], tag=name)
        refused(name, 65, "ayer ", said)


def test_layouts_and_archives_of_the_wrong_kind(udi_env: dict[str, str], tmp_path: Path) -> None:
    def pull(reference: str, code: int, *words: str) -> None:
        three_parts(udi_here("pull", reference, env=udi_env), code, *words)
        assert tree(udi_env["UDI_STORE"]) == []

    layout = oci.Layout(tmp_path / "layout")
    image = layout.add_image([oci.Layer.of(oci.file("x", "x"))])
    index = layout.path / "index.json"
    good = index.read_text()
    for text in ("", "[]", "[" * 100_000, "{}", '{"manifests": 5}', '{"manifests": [{"digest": "../../x"}]}'):
        index.write_text(text)
        pull(f"oci:{layout.path}", 65)
    index.write_text(good)
    config = layout.blob_path(image.manifest["config"]["digest"])
    config.unlink()
    pull(f"oci:{layout.path}", 65, "lacks a blob")
    for make in (config.mkdir, lambda: os.mkfifo(config), lambda: config.symlink_to(config)):
        make()
        pull(f"oci:{layout.path}", 65, "lacks a blob")
        config.rmdir() if config.is_dir() else config.unlink()
    pull(f"oci:{tmp_path}", 66, "not an OCI layout")

    archive = tmp_path / "archive.tar"
    entries = [oci.symlink("loop", "loop"), oci.directory("directory"), oci.file("text", "no JSON")]
    documents = ["", "{", "5", "[5]", "[[]]", "[{}]", '[{"Config": 5, "Layers": []}]', "[" * 100_000]
    documents += [json.dumps([{"Config": name, "Layers": []}]) for name in ("loop", "directory", "text", "nosuch")]
    for document in documents:
        archive.write_bytes(oci.tar([*entries, oci.file("manifest.json", document)]))
        pull(f"docker-archive:{archive}", 65)
    archive.write_bytes(oci.tar([oci.file("other", "x")]))
    pull(f"docker-archive:{archive}", 65, "lacks manifest.json")
    archive.write_bytes(os.urandom(5000))
    pull(f"docker-archive:{archive}", 65, "not a docker-archive")
    pull(f"docker-archive:{tmp_path}", 66, "directory")
    for suffix in ("squashfs", "sif"):
        file = tmp_path / f"image.{suffix}"
        for data in (b"", b"hsqs", b"hsqs" + os.urandom(200), os.urandom(5000)):
            file.write_bytes(data)
            pull(str(file), 65)
        pull(str(tmp_path / f"none.{suffix}"), 66, "does not exist")
        file.unlink()
        os.mkfifo(file)
        pull(str(file), 66, "is no file")
    os.mkfifo(tmp_path / "index.json")
    pull(f"oci:{tmp_path}", 66, "no regular file")


def test_bombs(faulty: FaultyRegistry, refused: Callable[..., None], tmp_path: Path) -> None:
    layout, config = faulty.layout, tmp_path / "config.yaml"
    zeros = raw_entry(b"zeros", size=40 << 20) + bytes(40 << 20) + bytes(1024)
    cases = {
        "ratio": ([oci.Layer(data=zeros + bytes(1 << 20))], "max_size: 10M", "max_size"),
        "entries": (
            [oci.Layer.of(*(oci.file(f"f{n}") for n in range(50)))] * 3,
            "max_entries: 100",
            "max_entries",
        ),
        "sparse": ([oci.Layer(data=sparse_file(1 << 40))], "max_size: 1G", "max_size"),
    }
    for name, (layers, limit, said) in cases.items():
        layout.add_image(layers, tag=name)
        config.write_text(limit)
        refused(name, 65, said, UDI_CONFIG=str(config))


def sparse_file(size: int) -> bytes:
    """A file of GNU's sparse format 1.0 that is one hole."""
    values = {"major": "1", "minor": "0", "name": "x", "realsize": str(size)}
    records = {f"GNU.sparse.{key}": value for key, value in values.items()}
    return oci.tar([oci.file("GNUSparseFile.0/x", b"0\n".ljust(512, b"\0"), pax_headers=records)])


def test_tricks_are_contained_and_told(faulty: FaultyRegistry, udi_env: dict[str, str], tmp_path: Path) -> None:
    """Links that point out of the image stay in it, and nothing of this machine is reached or followed."""
    victim = tmp_path / "victim"
    victim.mkdir()
    trick = str(victim).lstrip("/")
    layers = [
        oci.Layer.of(
            oci.symlink("out", str(victim)),
            oci.symlink("up", "../../../../../../../.." + str(victim)),
            oci.symlink("loop", "loop"),
            oci.device("disk", 8, 0, block=True, mode=0o666),
            oci.file("setuid", "x", 0o4755),
        ),
        oci.Layer.of(oci.file("out/file", "evil"), oci.file("up/file2", "evil"), oci.hardlink("hard", "setuid")),
    ]
    faulty.layout.add_image(layers, tag="tricks")
    done = udi_here("pull", "--json", faulty.reference("tricks"), env=udi_env)
    assert done.returncode == 0, done.stderr
    assert list(victim.iterdir()) == []
    squashfs = json.loads(done.stdout)["squashfs"]
    listed = subprocess.run(["unsquashfs", "-lls", squashfs], capture_output=True, text=True, check=True).stdout
    assert f"squashfs-root/{trick}/file\n" in listed and f"squashfs-root/{trick}/file2\n" in listed
    assert "-rwsr-xr-x" in listed, "kept in the file; tasks get nosuid and nodev mounts"


def test_a_program_for_another_machine(faulty: FaultyRegistry, udi_env: dict[str, str]) -> None:
    foreign = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 8, 1) + bytes(100)  # a MIPS program
    programs = [oci.file("bin/tool", foreign, 0o755), oci.file("bin/text", "neither program nor script", 0o755)]
    faulty.layout.add_image([oci.Layer.of(oci.directory("bin"), *programs)], tag="mips", platform="linux/mips64le")
    reference = faulty.reference("mips")
    three_parts(udi("run", reference, "--", "tool", env=udi_env), 125, "linux/mips64le", "--platform")
    foreign_run = ("run", "--platform", "linux/mips64le", reference, "--")
    three_parts(udi(*foreign_run, "tool", env=udi_env), 126, "another kind of machine")
    three_parts(udi(*foreign_run, "/bin/text", env=udi_env), 126, "cannot be executed")
    for command in ("inspect", "verify"):
        three_parts(udi_here(command, reference, env=udi_env), 66, "linux/mips64le only")
        assert udi_here(command, "--platform", "linux/mips64le", reference, env=udi_env).returncode == 0
    assert udi_here("rm", reference, env=udi_env).returncode == 0, "this node's idle mount is no use"
    assert tree(udi_env["UDI_STORE"]) == []


def test_an_image_without_layers_is_an_empty_one(faulty: FaultyRegistry, udi_env: dict[str, str]) -> None:
    faulty.layout.add_image([], tag="scratch")
    assert udi_here("pull", faulty.reference("scratch"), env=udi_env).returncode == 0
    three_parts(udi("run", faulty.reference("scratch"), "--", "true", env=udi_env), 127, "true")


def test_a_missing_tool(faulty: FaultyRegistry, refused: Callable[..., None]) -> None:
    tools = {"UDI_TOOL_TAR2SQFS": "/nowhere", "UDI_TOOL_MKSQUASHFS": "/nowhere"}
    refused("latest", 69, "apt-get install squashfs-tools-ng", **tools)


@pytest.mark.root
@pytest.mark.needs("mount")
def test_a_full_disk(faulty: FaultyRegistry, udi_env: dict[str, str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "2m"):
        env = {**udi_env, "UDI_STORE": str(disk / "store")}
        three_parts(udi("pull", faulty.reference(), env=env), 74, "No space is left", "udi gc")
        assert tree(str(disk)) == []


@pytest.mark.root
@pytest.mark.needs("mount")
def test_a_read_only_file_system(faulty: FaultyRegistry, tiny_image: str, udi_env: dict[str, str]) -> None:
    store = udi_env["UDI_STORE"]
    assert udi_here("pull", tiny_image, env=udi_env).returncode == 0
    assert udi_here("pull", faulty.reference(), env=udi_env).returncode == 0
    faulty.layout.add_image([oci.Layer.of(oci.file("x", "x"))], tag="other")
    subprocess.run(["mount", "--bind", store, store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        before = tree(store)
        assert udi_here("lookup", faulty.reference(), env=udi_env).returncode == 0
        for argv in (["pull", faulty.reference("other")], ["rm", faulty.reference()]):
            three_parts(udi_here(*argv, env=udi_env), 73, "UDI_STORE", "Read-only")
        assert udi_here("gc", env=udi_env).returncode == 0
        assert udi("run", tiny_image, "--", "true", env=udi_env).returncode == 0
        assert tree(store) == before
    finally:
        udi_here("node", "clean", env=udi_env)
        subprocess.run(["umount", store], check=True)


def test_a_store_that_is_closed_to_the_user(faulty: FaultyRegistry, ordinary_user: OrdinaryUser) -> None:
    store = ordinary_user.home / "store"
    store.mkdir()
    ordinary_user.own(store)
    own = {"STORE": "store", "NODE_DIR": "node", "CONFIG": "user.yaml", "SITE_CONFIG": "site.yaml"}
    env = {f"UDI_{key}": str(ordinary_user.home / name) for key, name in own.items()}

    def command(*argv: str, store: str = "store") -> subprocess.CompletedProcess[str]:
        wanted = {**env, "UDI_STORE": str(ordinary_user.home / store)}
        return ordinary_user.run([ordinary_user.python, "-m", "udi_core", *argv], env=wanted, check=False)

    assert command("pull", faulty.reference()).returncode == 0
    faulty.layout.add_image([oci.Layer.of(oci.file("x", "x"))], tag="other")
    try:
        for directory in [store, *(each for each in store.rglob("*") if each.is_dir())]:
            directory.chmod(0o555)
        assert command("lookup", faulty.reference()).returncode == 0
        three_parts(command("pull", faulty.reference("other")), 73, "UDI_STORE", str(store))
        three_parts(command("rm", faulty.reference()), 73, "UDI_STORE")
        store.chmod(0)
        on_image = (["lookup"], ["path"], ["pull"], ["verify"], ["rm"])
        for argv in (["images"], ["gc"], *([*each, faulty.reference()] for each in on_image)):
            three_parts(command(*argv), 73, "UDI_STORE", "Permission denied")
        three_parts(command("run", faulty.reference(), "--", "true"), 125, "Permission denied")
        assert "cannot be read" in command("doctor").stdout
        closed = ordinary_user.home / "closed.sif"
        closed.touch(0)
        hidden = ordinary_user.home / "tree" / "hidden"
        hidden.mkdir(0, parents=True)
        for reference in (str(closed), f"docker-archive:{closed}", f"dir:{hidden.parent}"):
            three_parts(command("pull", reference, store="other"), 66, "cannot be read", "Permission denied")
    finally:
        store.chmod(0o755)
        for directory in [each for each in store.rglob("*") if each.is_dir()]:
            directory.chmod(0o755)
