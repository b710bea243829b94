"""Layers at random: what sane builders write, and what only strange ones do."""

from __future__ import annotations

import random
from typing import Any

from tests.support import oci


def wild(seed: int) -> list[oci.Layer]:
    """Layers in which anything may happen.

    Parents are not declared, lie behind symlinks or are replaced; names are written twice; hard links name files of
    any layer; whiteouts come before, between and after entries.  Unpacking may fail.
    """
    dice = random.Random(seed)
    names = dice.sample(["a", "b", "c", "d", "lib", "usr"], dice.randint(2, 5))
    clutter = dice.choice([0.0, 0.1, 0.3])
    files: list[str] = []

    def some_path(depth: int = 3) -> str:
        return "/".join(dice.choice(names) for _ in range(dice.randint(1, depth)))

    def entry() -> oci.Entry:
        path = some_path()
        fields: dict[str, Any] = {"uid": dice.randrange(3), "mtime": dice.randrange(1, 1_700_000_000)}
        roll = dice.random()
        if roll < 0.12:
            return oci.whiteout(path)
        if roll < 0.15:
            return oci.opaque(path if dice.random() < 0.9 else "")
        if roll < 0.40:
            return oci.directory(path, dice.choice([0o755, 0o700]), **fields)
        if roll < 0.52:
            up = "../" * dice.randrange(3) if dice.random() < 0.4 else dice.choice(["", "", "/"])
            return oci.symlink(path, up + some_path(2) + dice.choice(["", "", "", "/..", "/../" + names[0]]), **fields)
        if roll < 0.65:
            return oci.hardlink(path, dice.choice(files) if files and dice.random() < 0.95 else some_path())
        files.append(path)
        return oci.file(path, dice.randbytes(dice.choice([0, 1, 700])), dice.choice([0o644, 0o755]), **fields)

    layers = []
    for _ in range(dice.randint(1, 4)):
        entries = [entry() for _ in range(dice.randint(1, dice.choice([4, 12, 25])))]
        if dice.random() >= clutter:
            # No name twice, and no entries below what is no directory.
            kinds = {each.info.name: each for each in entries}
            entries = [
                each
                for name, each in kinds.items()
                if not any(name.startswith(other + "/") and not found.info.isdir() for other, found in kinds.items())
            ]
        if dice.random() < 0.5:
            entries.sort(key=lambda each: each.info.name)
        layers.append(oci.Layer.of(*entries, compression=""))
    return layers
