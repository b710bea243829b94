"""Starts a kernel in an image on the node that ``srun`` chose: ``python -m udi_jupyter.on_node``.

One JSON line comes in on standard input, and one goes out on standard output when the kernel listens: its address and
ports, or the error.  The kernel chooses its ports itself and writes them into its connection file, in a directory of
the node, so no other program can have taken them meanwhile.  The end of standard input is the death of the server, and
of the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from typing import Any

from udi_core import DEVNULL, Launch, LaunchError, Process, UdiError, Volume, lazy_progress, spawn
from udi_jupyter.ending import record_end
from udi_jupyter.inside import inside
from udi_jupyter.ipykernel import provide
from udi_jupyter.kernelspec import KernelSettings

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def main() -> int:
    """Run a kernel to its end; returns its exit status."""
    # Whatever prints must not come between the answer and its reader.
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Slurm ends a step by SIGTERM, and the key of the kernel must not stay on the node.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    asked = time.time()
    directory = tempfile.mkdtemp(prefix="udi-kernel-")
    try:
        request = json.loads(sys.stdin.readline())
        with contextlib.ExitStack() as resources:
            kernel, launch, path = _start(request, directory, resources)
            began = time.time()
            # Daemonic: it may still wait for the server when the kernel has ended.
            threading.Thread(target=_end_with_server, args=(kernel,), daemon=True).start()
            print(json.dumps({"connection": _wait_for_ports(kernel, path)}), file=answer_to, flush=True)
            status = kernel.wait()
            record_end(launch, asked=asked, began=began, status=status)
        return status if status >= 0 else 128 - status
    except UdiError as error:
        print(json.dumps({"error": str(error)}), file=answer_to, flush=True)
        return error.exit_code
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(
    request: dict[str, Any], directory: str, resources: contextlib.ExitStack
) -> tuple[Process[bytes], Launch, str]:
    settings = KernelSettings.parse(request["settings"])
    environ = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
    with lazy_progress() as progress:
        image = resources.enter_context(inside(settings, progress=progress, environ=environ))
        ipykernel = provide(image, progress, encrypted=request["encrypt"] == "required")
    connection = dict(request["connection"])
    if not ipykernel.encrypts:
        connection = {name: value for name, value in connection.items() if not name.startswith("curve_")}
    address = own_address()
    # After a restart clients find the kernel where it was, if it can be there.
    before = [connection[name] for name in PORTS]
    if connection["ip"] != address or not all(_is_free(address, port) for port in before):
        connection.update(dict.fromkeys(PORTS, 0))
    connection["ip"] = address
    path = os.path.join(directory, "connection.json")
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(connection, file)
    launch = image.launch(
        image.python,
        *ipykernel.start,
        "-f",
        path,
        *request["arguments"],
        support=(*ipykernel.support, Volume(source=directory, target=directory)),
        calls=resources.enter_context(image.host_calls()),
    )
    kernel = spawn(launch.argv, env=launch.env, pass_fds=launch.pass_fds, stdin=DEVNULL)
    return kernel, launch, path


def own_address() -> str:
    """The address at which the node that ran ``srun`` reaches this one."""
    server = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostbyname(socket.gethostname())
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server, 9))  # sends nothing: asks the routing table
        return str(probe.getsockname()[0])


def _is_free(address: str, port: int) -> bool:
    if port <= 0:
        return False
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError:
            return False
    return True


def _end_with_server(kernel: Process[bytes]) -> None:
    with contextlib.suppress(OSError):
        sys.stdin.read()
    kernel.kill()


def _wait_for_ports(kernel: Process[bytes], path: str) -> dict[str, Any]:
    while True:
        ended = kernel.poll()
        with contextlib.suppress(OSError, ValueError):  # it is being written at this moment
            with open(path) as file:
                connection: dict[str, Any] = json.load(file)
            if all(connection[name] > 0 for name in PORTS):
                return connection
        if ended is not None:
            raise LaunchError(
                "The kernel ended before it listened", f"Its exit status is {ended}; see the server's log."
            )
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
