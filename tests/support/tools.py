"""Programs that tests need: a missing one skips the test on a laptop, and fails it in CI."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import NoReturn

import pytest

from udi_core import _process

#: Debian package of each program that only tests use; the others are in ``udi_core._process.PACKAGES``.
PACKAGES = {
    "apt-get": "apt",
    "chromedriver": "chromium-driver",
    "busybox": "busybox-static",
    "debootstrap": "debootstrap",
    "docker-registry": "docker-registry",
    "dpkg-deb": "dpkg",
    "modulecmd": "environment-modules",
    "munged": "munge",
    "sbatch": "slurm-wlm",
    "setpriv": "util-linux",
    "sinfo": "slurm-wlm",
    "skopeo": "skopeo",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "srun": "slurm-wlm",
    "umoci": "umoci",
    "unshare": "util-linux",
}


def in_ci() -> bool:
    """Whether this is a CI run, where nothing may be skipped silently."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def unavailable(reason: str) -> NoReturn:
    """End the test: skipped with the reason on a laptop, failed in CI."""
    if in_ci():
        pytest.fail(f"CI=true, and {reason}", pytrace=False)
    pytest.skip(reason)


def need(tools: Iterable[str]) -> None:
    """End the test (see :func:`unavailable`) if one of the programs is missing."""
    missing = [tool for tool in tools if _process.find_tool(tool) is None]
    if missing:
        packages = sorted({PACKAGES.get(tool) or _process.PACKAGES.get(tool, tool) for tool in missing})
        unavailable(f"{', '.join(missing)} not installed (apt-get install {' '.join(packages)})")


def free_port() -> int:
    """A TCP port of the loopback address on which nothing listens at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
