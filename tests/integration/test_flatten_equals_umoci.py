"""Flattened images against ``umoci unpack`` as root, path by path, over generated and over hand-made layers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
import tarfile
from collections.abc import Iterator
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
        (each, os.getxattr(path, each, follow_symlinks=False)) for each in sorted(names) if each[:5] == "user."
    )


def compare(tmp_path: Path, layers: list[oci.Layer], *, may_fail: bool = False) -> None:
    """Flatten and mount, unpack by umoci, and compare.  Where umoci fails (if it may), nothing is asked of us."""
    layout = oci.Layout(tmp_path / "layout")
    layout.add_image(layers)
    # Debian's umoci reads no zstd: it gets the same layers compressed by gzip.
    layout.add_image([oci.Layer(data=layer.data, diff_id=layer.diff_id) for layer in layers], tag="umoci")
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


@pytest.mark.parametrize("seed", range(40))
def test_generated_layers(tmp_path: Path, seed: int) -> None:
    compare(tmp_path, generate(seed))


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_wild_layers(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 20):
        (tmp_path / str(seed)).mkdir()
        compare(tmp_path / str(seed), wild(seed), may_fail=True)


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


def test_times_before_1970_and_fractions(tmp_path: Path) -> None:
    fraction = oci.file("fraction", "x", mtime=1_600_000_000.75)
    compare(tmp_path, [oci.Layer.of(fraction)])
