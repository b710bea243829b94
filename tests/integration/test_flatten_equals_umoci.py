"""Flattened images against ``umoci unpack`` as root, path by path, over generated and over hand-made layers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import oci
from tests.support.layers import wild
from udi_core import Config, ImageReference, ImageStore, pull, run

pytestmark = [pytest.mark.needs("umoci", "tar2sqfs", "mount"), pytest.mark.root]


@contextlib.contextmanager
def mounted(squashfs: str, where: Path) -> Iterator[Path]:
    where.mkdir()
    run(["mount", "-o", "loop,ro", squashfs, str(where)])
    try:
        yield where
    finally:
        run(["umount", str(where)])


def snapshot(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Every path below ``root`` with all that a squashfs can keep of it; inode sharing as the first path of it."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, list[bytes]] = {}
    top = os.fsencode(root)
    for directory, directories, names in os.walk(top):
        for name in [*directories, *names, *([b""] if directory == top else [])]:
            path = os.path.join(directory, name)
            inside = path[len(top) :]
            seen = os.lstat(path)
            content: object = ""
            if stat.S_ISREG(seen.st_mode):
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
            elif stat.S_ISLNK(seen.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(seen.st_mode) or stat.S_ISBLK(seen.st_mode):
                content = seen.st_rdev
            found[inside] = (oct(seen.st_mode), seen.st_uid, seen.st_gid, content, xattrs(path), int(seen.st_mtime))
            if not stat.S_ISDIR(seen.st_mode):
                inodes.setdefault(seen.st_ino, []).append(inside)
    for paths in inodes.values():
        for path in paths:
            found[path] += (min(paths),)
    return found


def xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return ()  # a squashfs without any says that it does not support them
    return tuple(
        (each, os.getxattr(path, each, follow_symlinks=False))
        for each in sorted(names)
        if each.startswith(("user.", "trusted.", "security.capability"))
    )


def compare(
    tmp_path: Path, layers: list[oci.Layer], *, as_if: list[oci.Layer] | None = None, may_fail: bool = False
) -> None:
    """Flatten and mount, unpack by umoci, and compare.

    Where umoci fails (if it may), nothing is asked of us.  ``as_if`` are the same files as umoci can read them.
    """
    layout = oci.Layout(tmp_path / "layout")
    layout.add_image(layers)
    # Debian's umoci reads no zstd: it gets the same layers compressed by gzip.
    layout.add_image([oci.Layer(data=layer.data, diff_id=layer.diff_id) for layer in as_if or layers], tag="umoci")
    unpacked = run(["umoci", "unpack", "--image", f"{layout.path}:umoci", str(tmp_path / "bundle")], check=not may_fail)
    if unpacked.returncode:
        return
    config = Config(store=str(tmp_path / "store"), node_dir=str(tmp_path / "node"))
    image = pull(ImageReference.parse(f"oci:{layout.path}:latest"), ImageStore(config.store), config)
    with mounted(image.squashfs, tmp_path / "mnt") as root:
        ours = snapshot(root)
    theirs = snapshot(tmp_path / "bundle" / "rootfs")
    different = {
        path: (ours.get(path), theirs.get(path))
        for path in ours.keys() | theirs.keys()
        if not _same(ours.get(path), theirs.get(path))
    }
    assert not different, "\n".join(f"{path!r}: ours {a}\n{' ' * 20} umoci {b}" for path, (a, b) in different.items())


def _same(ours: tuple[object, ...] | None, theirs: tuple[object, ...] | None) -> bool:
    if ours is None or theirs is None or ours == theirs:
        return ours == theirs
    # The time of a directory that no layer declares, or in which umoci made such a one, is when umoci made it.
    made_now = isinstance(theirs[5], int) and theirs[5] > 1_750_000_000 and str(theirs[0]).startswith("0o4")
    return made_now and ours[:5] == theirs[:5] and ours[6:] == theirs[6:]


def generate(seed: int) -> list[oci.Layer]:
    """Layers that a sane builder could write: parents declared, no name twice, links to files of their own layer."""
    dice = random.Random(seed)
    names = ["a", "b", "lib", "x y", "ü", "n" * 120, "odd\\name"]
    tree: dict[str, str] = {}
    layers = []
    for number in range(dice.randint(2, 5)):
        entries: dict[str, oci.Entry] = {}
        kinds: dict[str, str] = {}
        whiteouts: list[oci.Entry] = []

        def declare(path: str, kinds: dict[str, str] = kinds, entries: dict[str, oci.Entry] = entries) -> bool:
            """Put a path's parents into this layer, as directories; False where that is impossible."""
            parts = path.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                parent = "/".join(parts[:depth])
                if kinds.get(parent, "d") != "d":
                    return False
                if parent not in kinds:
                    kinds[parent] = "d"
                    entries[parent] = oci.directory(parent, dice.choice([0o755, 0o700, 0o1777]), **owner())
            return True

        def owner() -> dict[str, object]:
            return {
                "uid": dice.choice([0, 1000, 70000, 3000000]),
                "gid": dice.choice([0, 5, 100000]),
                "mtime": dice.choice([0, 1, 1_600_000_000, 1_700_000_000]),
            }

        for _ in range(dice.randint(3, 25)):
            path = "/".join(dice.choice(names) for _ in range(dice.randint(1, 4)))
            if path in kinds or not declare(path):
                continue
            content = dice.randbytes(dice.choice([0, 1, 511, 512, 513, 5000, 300_000]))
            roll = dice.random()
            if roll < 0.15 and tree:
                victim = dice.choice(sorted(tree))
                inside = any(kind != "d" and victim.startswith(p + "/") for p, kind in kinds.items())
                above = any(each.startswith(victim + "/") for each in kinds)
                if victim not in kinds and not inside and not above and declare(victim):
                    whiteouts.append(oci.whiteout(victim))
            elif roll < 0.2 and path in tree and tree[path] == "d":
                kinds[path] = "d"
                entries[path] = oci.directory(path, **owner())
                whiteouts.append(oci.opaque(path))
            elif roll < 0.4:
                kinds[path] = "d"
                entries[path] = oci.directory(path, dice.choice([0o755, 0o2755]), **owner())
            elif roll < 0.5:
                kinds[path] = "l"
                entries[path] = oci.symlink(
                    path, dice.choice(["a", "../b", "/lib/a", "no/where", "t" * 150]), **owner()
                )
            elif roll < 0.58:
                kinds[path] = "p"
                entries[path] = dice.choice([oci.fifo(path, 0o600), oci.device(path, 1, 3)])
            elif roll < 0.7 and (files := [each for each, kind in kinds.items() if kind == "f"]):
                kinds[path] = "h"
                entries[path] = oci.hardlink(path, dice.choice(sorted(files)))
            else:
                kinds[path] = "f"
                extra = owner()
                if dice.random() < 0.2:
                    extra["pax_headers"] = {"SCHILY.xattr.user.note": f"v{number}"}
                entries[path] = oci.file(path, content, dice.choice([0o644, 0o755, 0o4755, 0o2711, 0o000]), **extra)
        for path, kind in kinds.items():
            for below in [each for each in tree if each.startswith(path + "/")] if kind != "d" else []:
                del tree[below]
            tree[path] = kind
        kind_of = dice.choice(["gzip", "zstd", ""])
        layers.append(oci.Layer.of(*whiteouts, *entries.values(), compression=kind_of))  # type: ignore[arg-type]
    return layers


@pytest.mark.parametrize(("layers", "share"), [(generate, 0.25), (wild, 1.0)], ids=["sane", "wild"])
def test_layers_at_random(
    tmp_path: Path, request: pytest.FixtureRequest, layers: Callable[[int], list[oci.Layer]], share: float
) -> None:
    """``--seeds 1000:200`` for other ones and more of them."""
    first, _, count = str(request.config.getoption("--seeds")).rpartition(":")
    start = int(first or 0)
    for seed in range(start, start + max(1, int(int(count) * share))):
        directory = tmp_path / str(seed)
        directory.mkdir()
        try:
            compare(directory, layers(seed), may_fail=layers is wild)
        except BaseException as error:
            error.add_note(f"with seed {seed}")
            raise
        shutil.rmtree(directory)


def test_hard_links_whose_target_is_hidden_or_below(tmp_path: Path) -> None:
    base = oci.Layer.of(
        oci.file("one", "1"), oci.hardlink("two", "one"), oci.hardlink("three", "one"), oci.file("below", "b")
    )
    links = oci.Layer.of(oci.hardlink("to-below", "below"), oci.hardlink("also", "below"))
    top = oci.Layer.of(oci.whiteout("one"), oci.file("below", "replaced"))
    compare(tmp_path, [base, links, top])


def test_links_to_a_link(tmp_path: Path) -> None:
    base = oci.Layer.of(oci.file("f", "f"), oci.hardlink("g", "f"), oci.hardlink("h", "g"))
    compare(tmp_path, [base, oci.Layer.of(oci.whiteout("g"), oci.file("f", "new"))])


def test_a_parent_that_is_a_symlink_in_a_lower_layer(tmp_path: Path) -> None:
    base = oci.Layer.of(
        oci.directory("usr"),
        oci.directory("usr/lib"),
        oci.file("usr/lib/old", "old"),
        oci.file("usr/lib/kept", "kept"),
        oci.symlink("lib", "usr/lib"),
        oci.symlink("opt", "/usr/lib"),
    )
    upper = oci.Layer.of(oci.file("lib/old", "new"), oci.file("lib/more", "more"), oci.file("opt/x", "x"))
    compare(tmp_path, [base, upper])


def test_kinds_change_between_layers(tmp_path: Path) -> None:
    base = oci.Layer.of(
        oci.directory("d"), oci.file("d/inside", "1"), oci.file("f", "f"), oci.symlink("s", "d"), oci.directory("e")
    )
    upper = oci.Layer.of(
        oci.file("d", "now a file"), oci.directory("f"), oci.file("f/x", "x"), oci.directory("s"), oci.symlink("e", "f")
    )
    compare(tmp_path, [base, upper])


def test_opaque_directory_keeps_its_own_layers_entries(tmp_path: Path) -> None:
    base = oci.Layer.of(oci.directory("d"), oci.file("d/a", "a"), oci.directory("d/sub"), oci.file("d/sub/b", "b"))
    upper = oci.Layer.of(oci.directory("d"), oci.file("d/new", "n"), oci.opaque("d"))
    compare(tmp_path, [base, upper])


def test_gnu_long_names_and_odd_bytes(tmp_path: Path) -> None:
    entries = [
        oci.directory("d" * 110),
        oci.file("d" * 110 + "/" + "f" * 150, "long"),
        oci.symlink("s", "t" * 300),
        oci.file("new\nline", "n"),
        oci.file("tab\tand\\backslash", "t"),
        oci.file("latin-\udcff", "bytes"),
    ]
    compare(tmp_path, [oci.Layer(data=oci.tar(entries, tarfile.GNU_FORMAT))])


def test_names_with_dots_and_slashes(tmp_path: Path) -> None:
    layer = oci.Layer.of(
        oci.directory("./"), oci.directory("./etc/"), oci.file("./etc//conf", "c"), oci.file("/absolute", "a")
    )
    compare(tmp_path, [layer, oci.Layer.of(oci.directory("etc"), oci.whiteout("./etc/conf"))])


def test_a_name_written_twice_in_one_layer(tmp_path: Path) -> None:
    layer = oci.Layer.of(
        oci.file("f", "first"), oci.file("other", "o"), oci.file("f", "second"), oci.symlink("f", "other")
    )
    compare(tmp_path, [oci.Layer.of(oci.file("g", "g")), layer])


def test_times_of_fractions_of_seconds(tmp_path: Path) -> None:
    entries = [oci.file("fraction", "x", mtime=1_600_000_000.75), oci.file("late", "x", mtime=0xFFFFFFFF)]
    compare(tmp_path, [oci.Layer.of(*entries)])


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_large_owners_and_devices(tmp_path: Path, format: int) -> None:
    entries = [
        oci.directory("dev", uid=0xFFFFFFFE, gid=3_000_000_000),
        oci.file("large", "x", uid=2_097_152, gid=4_000_000_000),
        oci.symlink("link", "large", uid=2_097_152),
        oci.device("dev/char", 4095, 1_048_575, mode=0o666, uid=5),
        oci.device("dev/block", 8, 300, block=True, gid=6),
        oci.fifo("dev/fifo", 0o620),
    ]
    compare(tmp_path, [oci.Layer(data=oci.tar(entries, format))])


def test_modes_that_mount_options_take_away_are_kept(tmp_path: Path) -> None:
    entries = [oci.file("suid", "x", 0o4755), oci.file("sgid", "x", 0o2711), oci.directory("sticky", 0o1777)]
    compare(tmp_path, [oci.Layer.of(*entries, oci.directory("sgid-directory", 0o2775), oci.file("none", "x", 0))])


def test_extended_attributes(tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")

    def attributes(**values: str) -> dict[str, object]:
        return {"pax_headers": {f"SCHILY.xattr.{key.replace('__', '.')}": value for key, value in values.items()}}

    entries = [
        oci.directory("./", **attributes(user__of="root")),
        oci.file("capable", "x", **attributes(security__capability=capability.decode("latin-1"))),
        oci.file("many", "x", **attributes(user__a="1", user__b="2" * 3000, trusted__c="3", user__binary="a\0=\n ")),
        oci.directory("directory", **attributes(user__d="4")),
        oci.symlink("link", "many", **attributes(trusted__e="5")),
        oci.file("same", "y", **attributes(user__a="1")),
        oci.hardlink("hard", "same"),
        oci.file("other", "x", pax_headers={"LIBARCHIVE.xattr.user.x": "eA", "SCHILY.xattr.system.strange": "z"}),
    ]
    compare(tmp_path, [oci.Layer.of(*entries), oci.Layer.of(oci.file("directory/f", "x"))])


def make_files(top: Path) -> None:
    """Sparse files of every shape, and names that need more than a header has."""
    shapes = {
        "holes": [(4096, 4096), (65536, 100), (10_000_000, 4096), (20_000_000, 1)],
        "hole-at-end": [(0, 4096)],
        "hole-at-start": [(1_000_000, 10)],
        "many": [(start, 4096) for start in range(0, 3_000_000, 65536)],
        "all": [(0, 10000)],
        "nothing": [],
    }
    for name, pieces in shapes.items():
        with open(top / name, "wb") as file:
            for start, count in pieces:
                file.seek(start)
                file.write(os.urandom(count))
            if name != "all":
                file.truncate(25_000_000)
    (top / "plain").write_text("plain\n")
    deep = top / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    sparse = deep / ("f" * 90)
    sparse.write_bytes(b"x")
    os.truncate(sparse, 5_000_000)
    (top / "link").symlink_to("../" * 40 + "t" * 80)
    os.link(sparse, top / "hard")


@pytest.mark.needs("tar")
@pytest.mark.parametrize(
    "options",
    [
        ("--format=gnu", "--sparse"),
        ("--format=oldgnu", "--sparse"),
        ("--format=posix", "--sparse", "--sparse-version=0.0"),
        ("--format=posix", "--sparse", "--sparse-version=0.1"),
        ("--format=posix", "--sparse", "--sparse-version=1.0"),
        ("--format=posix", "--no-seek", "--xattrs", "--acls"),
    ],
)
def test_what_gnu_tar_writes(tmp_path: Path, options: tuple[str, ...]) -> None:
    files = tmp_path / "files"
    files.mkdir()
    make_files(files)
    os.setxattr(files / "plain", "user.note", b"value")

    def pack(*options: str) -> oci.Layer:
        return oci.Layer(data=run(["tar", "-C", str(files), "-c", *options, "."]).stdout)

    upper = oci.Layer.of(oci.whiteout("holes"), oci.file("many", "replaced"))
    # Debian's umoci knows no sparse files in GNU's own format.
    compare(tmp_path, [pack(*options), upper], as_if=[pack("--format=posix", *options[2:]), upper])


@pytest.mark.needs("tar")
@pytest.mark.parametrize("format", ["v7", "ustar"])
def test_what_old_tars_wrote(tmp_path: Path, format: str) -> None:
    files = tmp_path / "files"
    (files / "directory" / "inner").mkdir(parents=True)
    (files / "directory" / "inner" / "file").write_bytes(os.urandom(3000))
    (files / "link").symlink_to("directory/inner/file")
    os.link(files / "directory" / "inner" / "file", files / "hard")
    data = run(["tar", "-C", str(files), "-c", f"--format={format}", "directory", "link", "hard"]).stdout
    compare(tmp_path, [oci.Layer(data=data)])
