"""A pull that ends early leaves no program, no thread and no file behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support import oci
from udi_core import Config, ImageReference, ImageStore, Progress, pull

pytestmark = pytest.mark.needs("tar2sqfs")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    layout = oci.Layout(tmp_path_factory.mktemp("layout"))
    layers = [oci.Layer.of(oci.file(f"f{n}", os.urandom(20_000_000)), compression="") for n in range(4)]
    layout.add_image(layers)
    return f"oci:{layout.path}:latest"


def files(store: Path) -> list[str]:
    """Everything in the store but directories and locks that are kept for their names."""
    return [str(path) for path in store.rglob("*") if path.is_file() and "locks" not in path.parts]


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, MemoryError])
def test_an_error_in_the_middle(tmp_path: Path, reference: str, error: type[BaseException]) -> None:
    seen, before, threads = 0, set(children(os.getpid())), set(threading.enumerate())

    def fail(event: Progress) -> None:
        nonlocal seen
        seen += event.phase == "flatten"
        if seen == 30:
            raise error

    config = Config(store=str(tmp_path), node_dir=str(tmp_path / "node"))
    with pytest.raises(error):
        pull(ImageReference.parse(reference), ImageStore(config.store), config, progress=fail)
    end = time.monotonic() + 120
    while not (set(children(os.getpid())) <= before and set(threading.enumerate()) <= threads):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert files(tmp_path) == []
    image = pull(ImageReference.parse(reference), ImageStore(config.store), config)
    assert os.path.getsize(image.squashfs) > 80_000_000


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)]
)
def test_a_signal(tmp_path: Path, reference: str, number: int, status: int) -> None:
    environment = {**os.environ, "UDI_STORE": str(tmp_path), "UDI_NODE_DIR": str(tmp_path / "node")}
    command = [sys.executable, "-m", "udi_core", "pull", "--quiet", reference]
    program = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background of a script, this process ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    tool: list[str] = []
    while not tool and program.poll() is None:
        tool = children(program.pid)
        time.sleep(0.005)
    program.send_signal(number)
    _, said = program.communicate(timeout=120)
    assert program.returncode == status, said
    assert "Traceback" not in said
    # Interrupted while it started the tool, it has nobody to wait for: its end of the pipe ends the tool.
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{tool[0]}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{tool[0]}")
    assert files(tmp_path) == []
    assert list(tmp_path.glob("locks/*")) == []
