"""Kernels in images on other nodes, through a real Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import images, kernels, slurm, user

pytestmark = [pytest.mark.root, pytest.mark.needs("bwrap", "tar2sqfs", *images.TOOLS, *slurm.TOOLS)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Slurm]:
    """Not below pytest's own directory, which no ordinary user may enter."""
    with tempfile.TemporaryDirectory(prefix="udi-slurm-") as directory:
        os.chmod(directory, 0o755)
        with slurm.virtual_slurm(directory, 2) as running:
            yield running


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """Where an ordinary user can read it."""
    with user.ordinary_user() as account:
        yield kernels.kernel_image(account.home / "layout")


def used(account: user.OrdinaryUser | None, cluster: slurm.Slurm, image: str, env: dict[str, str]) -> dict[str, object]:
    """What :mod:`tests.support.srun_kernel` saw, as root or as an ordinary user."""
    argv = [account.python if account else sys.executable, "-m", "tests.support.srun_kernel", image]
    environ = {**(account.env if account else os.environ), **env, "SLURM_CONF": cluster.conf}
    done = subprocess.run(
        account.argv(argv) if account else argv,
        env=environ,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("who", ["root", "user"])
def test_a_kernel_on_another_node(
    who: str, cluster: slurm.Slurm, image: str, udi_env: dict[str, str], ordinary_user: user.OrdinaryUser
) -> None:
    home = str(ordinary_user.home) if who == "user" else udi_env["HOME"]
    env = {
        "UDI_STORE": f"{home}/store",
        "UDI_NODE_DIR": f"{home}/node",
        "HOME": home,
        "TMPDIR": f"{home}/tmp",
        "JUPYTER_DATA_DIR": f"{home}/jupyter",
        "JUPYTER_RUNTIME_DIR": f"{home}/runtime",
    }
    os.mkdir(env["TMPDIR"])
    os.chmod(env["TMPDIR"], 0o1777)
    seen = used(ordinary_user if who == "user" else None, cluster, image, env)
    assert seen["host"] == seen["host_after_restart"] == "k1"
    assert seen["uid"] == (ordinary_user.uid if who == "user" else 0)
    assert kernels.PRETTY_NAME in str(seen["release"])
    assert seen["interrupted"] == "KeyboardInterrupt"
    assert (seen["encrypted"], seen["without_keys"], seen["mode"]) == (True, False, "0o600")
    assert (seen["queued_before"], seen["queued_after"]) == ("", True), "the job ends with its kernel"
    assert seen["tidy"] and seen["died_with_allocation"] and seen["died_with_server"]
