"""A kernel on a node of a virtual Slurm, used as a person would: ``python -m tests.support.srun_kernel IMAGE``.

Prints what it saw as one JSON document.  A program of its own, so that an ordinary user can run it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from jupyter_client.manager import KernelManager
from udi_jupyter.kernelspec import KernelSettings, install

from tests.support import kernels

_HOST = "import socket, os; print(socket.gethostname(), os.environ['SLURM_JOB_ID'], os.getuid())"


def main(image: str) -> int:
    srun = ("srun", "--nodelist=k1", "--job-name=notebook")
    install(KernelSettings(image=image, srun=srun), name="far")
    seen: dict[str, object] = {"queued_before": queue()}
    with kernels.running("far") as client:
        manager = client.manager
        with open(manager.connection_file) as file:
            connection = json.load(file)
        seen["mode"] = oct(os.stat(manager.connection_file).st_mode & 0o777)
        seen["encrypted"] = bool(connection.get("curve_publickey"))
        host, job, uid = kernels.evaluate(client, _HOST).split()
        seen |= {
            "host": host,
            "uid": int(uid),
            "release": kernels.evaluate(client, "print(open('/etc/os-release').read())"),
        }
        seen["interrupted"] = kernels.interrupted(client)
        seen["without_keys"] = answers_without_keys(connection)
        manager.restart_kernel()
        client.wait_for_ready(timeout=kernels.PATIENCE)
        seen["host_after_restart"] = kernels.evaluate(client, _HOST).split()[0]
    seen["queued_after"] = wait_for(lambda: not queue())
    manager = KernelManager(kernel_name="far")
    manager.start_kernel()
    with kernels.connected(manager) as client:
        job = kernels.evaluate(client, _HOST).split()[1]
    subprocess.run(["scancel", job], check=True)
    seen["died_with_allocation"] = wait_for(lambda: not manager.is_alive())
    manager.shutdown_kernel(now=True)
    owner = subprocess.Popen([sys.executable, "-m", "tests.support.kernel_owner", "far"], stdout=subprocess.PIPE)
    assert owner.stdout and owner.stdout.readline() == b"started\n" and queue()
    owner.kill()
    owner.wait()
    seen["died_with_server"] = wait_for(lambda: not queue())
    seen["tidy"] = wait_for(lambda: not os.listdir(os.environ["TMPDIR"]))
    print(json.dumps(seen))
    return 0


def queue() -> str:
    return subprocess.run(["squeue", "-h", "-n", "notebook"], capture_output=True, text=True, check=True).stdout


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + kernels.PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def answers_without_keys(connection: dict[str, object]) -> bool:
    """Whether the kernel's heartbeat echoes to a peer that has no CurveZMQ keys."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(f"tcp://{connection['ip']}:{connection['hb_port']}")
        socket.send(b"ping")
        return bool(socket.poll(2000))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
