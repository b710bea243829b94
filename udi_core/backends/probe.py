"""Trying the backends on a tiny image, for ``udi doctor``."""

from __future__ import annotations

import base64
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from udi_core.backends import Place, load
from udi_core.errors import UdiError
from udi_core.node_files import check_directory, remove_tree

if TYPE_CHECKING:
    from udi_core.config import Config

# An empty directory in squashfs 4.0 with zstd, the compressor of our images:
# mksquashfs EMPTY IMAGE -comp zstd -all-root -mkfs-time 0 -all-time 0
_IMAGE = (
    b"c-qS-E-YqbfB_~j$;KeaaDai4frSA97C`A4Q2IX<BtZEMXml5pmSfP^s{dC(VJ*;bCl;;`lFa}A@1HZpi1qx}KOg&D88~1X;5u2rj7"
    b"bcmU=)mkQ7{Td!6+C7qhJ(_f>AIEM!_hc761Txp&ar"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What trying a backend showed.

    Attributes:
        reason: why it does not work; "" if it does.
        hint: what would make it work.
    """

    name: str
    reason: str
    hint: str


def probe(config: Config) -> Iterator[Verdict]:
    """Try every configured backend, in order.  Leaves nothing behind but the node directory.

    Raises:
        ConfigError: the node directory is of no use.
    """
    check_directory(config.node_dir)
    directory = tempfile.mkdtemp(prefix="probe-", dir=config.node_dir)
    try:
        squashfs = os.path.join(directory, "tiny.squashfs")
        with open(squashfs, "wb") as file:
            file.write(zlib.decompress(base64.b85decode(_IMAGE)))
        for name in config.backends:
            reason, hint = _try(name, squashfs, os.path.join(directory, name), config)
            yield Verdict(name=name, reason=reason, hint=hint)
    finally:
        remove_tree(directory)


def _try(name: str, squashfs: str, directory: str, config: Config) -> tuple[str, str]:
    root = os.path.join(directory, "root")
    os.makedirs(root)
    paths = {each: os.path.join(directory, each) for each in ("lock", "lease", "state", "log")}
    place = Place(root=root, **paths)
    # A holder waits for this lease to be given up, so somebody must have it.
    lease = os.open(place.lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        backend = load(name)
        backend.check(squashfs, config)
        backend.unmount(backend.mount(squashfs, place, config), place)
    except UdiError as error:
        return ": ".join(part for part in (error.brief, error.details) if part), error.hint
    except OSError as error:
        return error.strerror or str(error), ""
    finally:
        os.close(lease)
    return "", ""
