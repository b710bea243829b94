"""Layers damaged at random: whatever comes, it is an image or an error of ours; no crash, no hang, no foreign error."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support import oci
from tests.support.layers import wild
from udi_core import UdiError
from udi_core.flatten import Limits, flatten
from udi_core.layer import LayerInput
from udi_core.manifest import Descriptor
from udi_core.tarheader import BLOCK

SIZES = (b"77777777777\0", b"-0000000001\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"00000001000\0", b"\0" * 12)
LIMITS = Limits(entries=10_000, size=1 << 28)


def sealed(header: bytes) -> bytes:
    """A header with the checksum that it should have."""
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def damage(data: bytes, dice: random.Random) -> bytes:
    """Change some blocks of a tar: as a whole, or single bytes of headers, mostly with checksums that fit."""
    blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(blocks))
        header = bytearray(blocks[place])
        match dice.randrange(5):
            case 0:
                for _ in range(dice.randint(1, 6)):
                    header[dice.randrange(BLOCK)] = dice.choice([0, 32, 46, 47, 55, 128, 255, dice.randrange(256)])
            case 1:
                header[156] = dice.choice(b"0123456789xgLKSDVMN\0")
            case 2:
                header[124:136] = dice.choice(SIZES)
            case 3:
                blocks.insert(place, dice.choice(blocks))
            case 4 if len(blocks) > 1:
                del blocks[place]
                continue
        blocks[place] = sealed(bytes(header)) if dice.random() < 0.9 else bytes(header)
    whole = b"".join(blocks)
    return whole[: dice.randrange(len(whole))] if dice.random() < 0.1 else whole


def strange(dice: random.Random) -> bytes:
    """Entries that have extended headers."""
    records = {"SCHILY.xattr.user.a": "b", "mtime": "1.5", "GNU.sparse.major": dice.choice("10")}
    entries = [oci.file("x" * dice.randint(1, 300), b"a" * 700, pax_headers=records), oci.symlink("l" * 150, "t" * 120)]
    return oci.tar(entries, dice.choice([1, 2]))


def flattened(layers: list[oci.Layer], rewrite: bool) -> bool:
    """Flatten; False if that is refused."""

    def given(layer: oci.Layer) -> LayerInput:
        blob = oci.compress(layer.data, layer.compression) if not layer.diff_id else layer.data
        descriptor = Descriptor(
            media_type=oci.layer_type(layer.compression), digest=oci.digest_of(blob), size=len(blob)
        )

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(blob), 5000):
                yield blob[start : start + 5000]

        return LayerInput(descriptor=descriptor, diff_id=layer.diff_id or oci.digest_of(layer.data), open=pieces)

    try:
        flatten([given(each) for each in layers], lambda: lambda data: None, limits=LIMITS, rewrite=rewrite)
    except UdiError as error:
        assert error.brief and error.exit_code == 65
        return False
    return True


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_damaged_tars(first: int) -> None:
    made = 0
    for seed in range(first, first + 100):
        dice = random.Random(seed)
        layers = [oci.Layer(data=damage(each.data, dice), compression="") for each in wild(seed)]
        layers.append(oci.Layer(data=damage(strange(dice), dice), compression=""))
        made += flattened(layers, rewrite=seed % 2 == 0)
    assert 0 < made < 100, "some get by, and some do not"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_damaged_compression(compression: oci.Compression) -> None:
    whole = oci.tar([oci.file(f"f{number}", random.Random(number).randbytes(3000) * 3) for number in range(8)])
    packed = oci.compress(whole, compression)
    for seed in range(150):
        dice = random.Random(seed)
        blob = bytearray(packed)
        for _ in range(dice.randint(1, 3)):
            start = dice.randrange(len(blob))
            blob[start : start + dice.randint(0, 9)] = dice.randbytes(dice.randint(0, 9))
        layer = oci.Layer(data=bytes(blob), compression=compression, diff_id=oci.digest_of(whole))
        flattened([layer], rewrite=False)  # where it can be read at all, its diff ID was right
