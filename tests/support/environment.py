"""Environments of processes that share nothing with the machine's own store, mounts and configuration."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from tests.support import user


@contextlib.contextmanager
def own_environment() -> Iterator[dict[str, str]]:
    """The environment of a process with a store and a node directory of its own, both empty.

    Also ``HOME`` and ``PATH`` with this interpreter's programs in front.  Mounts and holders end with the block.
    """
    directory = tempfile.mkdtemp(prefix="udi-test-")  # short: socket paths below it must fit in 108 bytes
    os.mkdir(os.path.join(directory, "home"))
    dropped = ("UDI_", "XDG_", "SLURM_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    env |= {
        "HOME": os.path.join(directory, "home"),
        "PATH": f"{os.path.dirname(sys.executable)}:{env.get('PATH', '')}",
        "UDI_STORE": os.path.join(directory, "store"),
        "UDI_NODE_DIR": os.path.join(directory, "node"),
        # Empty ones, where pytest has set them (tests/conftest.py).
        **{name: os.environ[name] for name in ("UDI_SITE_CONFIG", "UDI_CONFIG") if name in os.environ},
    }
    try:
        yield env
    finally:
        user.clean_up(directory)
