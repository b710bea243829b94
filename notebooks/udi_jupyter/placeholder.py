"""A kernel that answers while an image is pulled: ``python -m udi_jupyter.placeholder -f CONNECTION_FILE``.

It runs no code.  A cell shows how far the image is, and ends, with an error, when it is there: then the real kernel
takes the ports.  An error, so that cells behind it do not run before it.  Standard input holds JSON lines: ``text`` is
progress, ``error`` says why there will be no image; its end is the arrival of the image.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

_ERROR = "ImageMissing"


class News:
    """What was told on standard input so far."""

    def __init__(self) -> None:
        self.text = "The image is not here yet"
        self.error = ""
        self.arrived = threading.Event()
        self.busy = 0
        self.interrupted = False

    def read(self, source: Any) -> None:
        """Read to the end; ends this process there, unless a cell is running, which then does."""
        for line in source:
            message = json.loads(line)
            self.text, self.error = message.get("text", self.text), message.get("error", self.error)
        self.arrived.set()
        if not self.busy:
            os._exit(0)


class Placeholder(Kernel):
    """See the module."""

    implementation = banner = "udi"
    implementation_version = "1"
    language_info = {  # noqa: RUF012 -- a trait of the base class
        "name": "python",
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "codemirror_mode": {"name": "ipython", "version": 3},
        "pygments_lexer": "ipython3",
    }
    news = News()

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """As in the base class; afterwards this process ends, if the image is here."""
        self.news.busy += 1
        base: Any = super()
        await base.execute_request(stream, ident, parent)
        self.news.busy -= 1
        if self.news.arrived.is_set() and not self.news.busy:
            # Replies leave, and cells behind this one are told that they will not run.
            asyncio.get_running_loop().call_later(1, os._exit, 0)

    async def interrupt_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """End the running cell; the base class would send a signal, and end this process."""
        self.news.interrupted = True
        session: Any = self.session
        session.send(stream, "interrupt_reply", {"status": "ok"}, parent, ident=ident)

    async def do_execute(self, code: str, silent: bool, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Show progress until there is no more."""
        if silent or not code.strip():
            return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}
        shown, self.news.interrupted = "", False
        while not (self.news.arrived.is_set() or self.news.error or self.news.interrupted):
            if self.news.text != shown:
                shown = self.news.text
                self._publish("stream", {"name": "stdout", "text": f"\r{shown:<78}"})
            await asyncio.sleep(0.2)
        said = self.news.error or f"{self.news.text}. Run the cell again later."
        if self.news.arrived.is_set():
            said = "The image is here now, and this kernel runs in it. Run the cell again."
        error = {"ename": _ERROR, "evalue": said, "traceback": said.splitlines()}
        self._publish("stream", {"name": "stdout", "text": "\n"})
        self._publish("error", error)
        return {"status": "error", "execution_count": self.execution_count, **error}

    def _publish(self, kind: str, content: dict[str, Any]) -> None:
        send: Any = self.send_response
        send(self.iopub_socket, kind, content)


if __name__ == "__main__":
    # A descriptor of its own: a kernel does what it likes with its standard input.
    threading.Thread(target=Placeholder.news.read, args=(os.fdopen(os.dup(0)),), daemon=True).start()
    sys.argv[0] = "placeholder"
    IPKernelApp.launch_instance(kernel_class=Placeholder)
