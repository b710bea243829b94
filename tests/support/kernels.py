"""Kernels for tests: an image with ipykernel, and clients that run cells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

from tests.support import images, oci

#: Starting a kernel takes a second; on a busy machine it may take very long.
PATIENCE = 180
#: What the image calls itself.
PRETTY_NAME = "Analysis image 3"


def kernel_image(directory: Path, *more: str, env: Sequence[str] = ()) -> str:
    """Reference of Debian's Python with ipykernel and ``more``, in a layout below ``directory``.

    Its /etc/os-release is its own, so that nobody takes it for the machine.
    """
    layers = [images.python_layer("ipykernel", *more, name="numeric")]
    layers.append(oci.Layer(data=oci.tar([oci.file("etc/os-release", f'PRETTY_NAME="{PRETTY_NAME}"\n')])))
    images.derive(images.image("numeric"), directory, layers, env=env)
    return f"oci:{directory}:latest"


@contextlib.contextmanager
def running(name: str) -> Iterator[Any]:
    """A client of a running kernel; its manager is ``client.manager``."""
    manager = KernelManager(kernel_name=name)
    manager.start_kernel()
    try:
        with connected(manager) as client:
            yield client
    finally:
        manager.shutdown_kernel(now=True)


@contextlib.contextmanager
def connected(manager: KernelManager) -> Iterator[Any]:
    """A client of a kernel that runs already."""
    client: Any = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        client.manager = manager
        yield client
    finally:
        client.stop_channels()


def evaluate(client: Any, code: str, **options: Any) -> str:
    """What a cell prints; an error raises."""
    printed: list[str] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=hook, timeout=PATIENCE, **options)
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(printed)


def interrupted(client: Any) -> str:
    """Start an endless cell, interrupt it, and return the name of the error that it ends with."""
    message = client.execute("import time\nprint('started', flush=True)\nwhile True: time.sleep(0.1)")
    # A kernel that only says "busy" cannot be interrupted yet.
    while client.get_iopub_msg(timeout=PATIENCE)["msg_type"] != "stream":
        pass
    client.manager.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=PATIENCE))["parent_header"].get("msg_id") != message:
        pass
    return str(reply["content"].get("ename"))
