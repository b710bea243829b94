"""A server that owns one kernel until it is killed: ``python -m tests.support.kernel_owner KERNEL``."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from jupyter_client.multikernelmanager import MultiKernelManager
from jupyter_core.paths import jupyter_runtime_dir

from tests.support import kernels

if __name__ == "__main__":
    os.makedirs(jupyter_runtime_dir(), exist_ok=True)
    server = MultiKernelManager(connection_dir=jupyter_runtime_dir())
    # Standard output is for the one word below; kernels print notes.
    kernel = server.start_kernel(kernel_name=sys.argv[1], stdout=sys.stderr.fileno())
    manager: Any = server.get_kernel(kernel)
    with kernels.connected(manager):
        print("started", flush=True)
        threading.Event().wait()
