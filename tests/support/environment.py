"""Environments of processes that share nothing with the machine's own store, mounts and configuration."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support import user


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A file system of its own at a path that is made, as large as ``mount -o size=`` says; needs root."""
    path.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "small", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


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
