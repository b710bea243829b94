"""Starts a kernel whose image must be pulled first: ``python -m udi_jupyter.waiting SETTINGS ARGUMENT…``.

A browser shows nothing of a kernel that has not answered yet.  So a kernel that only tells how far the image is
(:mod:`udi_jupyter.placeholder`) answers in its place, on the same ports, until the image is here.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any

from udi_core import DEVNULL, PIPE, Process, Progress, UdiError, Volume, progress_text, spawn
from udi_jupyter.ending import record_end
from udi_jupyter.inside import inside
from udi_jupyter.ipykernel import provide
from udi_jupyter.kernelspec import KernelSettings


def main(text: str, path: str, *arguments: str) -> int:
    """Run the kernel of a connection file to its end; returns its exit status."""
    asked = time.time()
    request = json.loads(text)
    # Whoever started Jupyter may have ignored it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not getppid(): the server may have died by now.
    server = int(os.environ.pop("JPY_PARENT_PID"))
    placeholder = spawn(
        [sys.executable, "-m", "udi_jupyter.placeholder", "-f", path],
        stdin=PIPE,
        env={**os.environ, "JPY_PARENT_PID": str(os.getpid())},
    )

    arrived = threading.Event()
    threading.Thread(target=_watch, args=(server, placeholder, arrived), daemon=True).start()

    def show(event: Progress) -> None:
        _tell(placeholder, {"text": progress_text(event)})

    with contextlib.ExitStack() as resources:
        try:
            image = resources.enter_context(inside(KernelSettings.parse(request["settings"]), progress=show))
            ipykernel = provide(image, show, encrypted=request["encrypted"])
            launch = image.launch(
                image.python,
                *ipykernel.start,
                "-f",
                path,
                *arguments,
                support=(*ipykernel.support, Volume(source=os.path.dirname(path), target=os.path.dirname(path))),
                calls=resources.enter_context(image.host_calls()),
            )
        except UdiError as error:
            # It stays: Jupyter would start a kernel that has ended again and again, and nobody would read why.
            _tell(placeholder, {"error": f"{error}\nRestart the kernel to try again."})
            return placeholder.wait()
        arrived.set()
        placeholder.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        placeholder.wait()
        began = time.time()
        status = spawn(launch.argv, env=launch.env, pass_fds=launch.pass_fds, stdin=DEVNULL).wait()
        record_end(launch, asked=asked, began=began, status=status)
    return status if status >= 0 else 128 - status


def _tell(placeholder: Process[bytes], message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, ValueError):
        placeholder.stdin.write(json.dumps(message).encode() + b"\n")  # type: ignore[union-attr]
        placeholder.stdin.flush()  # type: ignore[union-attr]


def _watch(server: int, placeholder: Process[bytes], arrived: threading.Event) -> None:
    """End with the server, and with a placeholder that was shut down."""
    while os.getppid() == server:
        if not arrived.is_set() and placeholder.poll() is not None:
            _thread.interrupt_main()  # a pull that is interrupted leaves nothing behind
            return
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)  # Jupyter made this process the leader of a group


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
