"""The provisioner of kernels on other nodes: ``srun`` starts :mod:`udi_jupyter.on_node`, which starts the kernel.

The kernel belongs to its allocation and ends with it.  ``srun``'s standard input stays open for as long as this server
lives, and its end ends the kernel; so nothing is left on the node, whatever kills the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from udi_core import PIPE, UdiError, spawn
from udi_jupyter.kernelspec import START
from udi_jupyter.on_node import PORTS
from udi_jupyter.provisioner import UdiProvisioner


class SrunProvisioner(UdiProvisioner):
    """Starts a kernel inside an image on another node; its traits are the settings of the kernelspec."""

    _runs = False

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """The command line of ``srun``; the rest happens on the node."""
        manager: Any = self.parent
        arguments = manager.format_kernel_cmd(extra_arguments=kwargs.pop("extra_arguments", []))
        kwargs.pop("transport_encryption", None)
        # Not LocalProvisioner's: it chooses ports on this machine, and allows only addresses of it.
        kwargs = await KernelProvisionerBase.pre_launch(self, **kwargs)
        try:
            settings = self.settings
        except UdiError as error:
            raise RuntimeError(str(error)) from error
        request = {
            "settings": asdict(settings),
            # Without "-f CONNECTION_FILE": the file is on the node.
            "arguments": arguments[len(START) + 2 :],
            "connection": self._wish(manager),
            "encrypt": self._policy(manager),
        }
        self._request = json.dumps(request).encode() + b"\n"
        # One kernel, whatever the allocation is: the last option of a kind counts.
        kwargs["cmd"] = [*settings.srun, "--ntasks=1", sys.executable, "-m", "udi_jupyter.on_node"]
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start ``srun`` and wait for the kernel's ports: as long as the queue makes one wait.

        Raises:
            RuntimeError: with the node's error, or how ``srun`` ended.
        """
        cwd = str(kwargs.get("cwd") or os.getcwd())
        environ = {name: value for name, value in kwargs["env"].items() if name != "JPY_PARENT_PID"}
        process: Any = spawn(cmd, stdin=PIPE, stdout=PIPE, env=environ, cwd=cwd, start_new_session=True)
        self.process, self._runs = process, False
        self.pid = self.pgid = process.pid
        self.cwd = cwd
        try:
            process.stdin.write(self._request)
            process.stdin.flush()
            answer = await asyncio.get_running_loop().run_in_executor(None, process.stdout.readline)
        except BaseException:  # whoever started the kernel has stopped waiting for it
            await self.kill()
            raise
        manager: Any = self.parent
        try:
            connection = json.loads(answer)["connection"]
        except (ValueError, KeyError):
            status = await self.wait()
            said = (
                json.loads(answer)["error"] if answer else f"{cmd[0]} ended with status {status}; see the server's log."
            )
            raise RuntimeError(said) from None
        if hasattr(manager, "curve_publickey") and "curve_publickey" not in connection:
            manager.curve_publickey = manager.curve_secretkey = None
        self._runs = True
        info: Any = {**connection, "key": manager.session.key}
        self.connection_info = info
        return self.connection_info

    @staticmethod
    def _policy(manager: Any) -> str:
        """``auto`` where Jupyter leaves it open: these connections cross a network."""
        policy = str(getattr(manager, "transport_encryption", "disabled"))
        return "required" if policy == "required" else "auto"

    @staticmethod
    def _wish(manager: Any) -> dict[str, Any]:
        """The connection file for the node, ports included that clients know from before a restart."""
        wish: dict[str, Any] = {name: getattr(manager, name) for name in PORTS}
        wish |= {"ip": manager.ip, "transport": "tcp", "key": manager.session.key.decode()}
        wish |= {"signature_scheme": manager.session.signature_scheme, "kernel_name": manager.kernel_name}
        if hasattr(manager, "curve_publickey") and zmq.has("curve"):
            public, secret = manager.curve_publickey, manager.curve_secretkey
            if public is None:
                public, secret = zmq.curve_keypair()
            wish |= {"curve_publickey": public.decode(), "curve_secretkey": secret.decode()}
        return wish

    async def kill(self, restart: bool = False) -> None:
        """End the kernel and the job step in order: srun that is killed outright would leave its allocation behind."""
        process: Any = self.process
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()
        # Where a kernel runs, that is its end, and the node is tidied up; where srun still waits for one, it is not.
        if not (self._runs and await self._ended(10)):
            await self.terminate(restart=restart)
            if not await self._ended(20):
                await super().kill(restart=restart)

    async def _ended(self, seconds: float) -> bool:
        for _ in range(int(seconds * 10)):
            if await self.poll() is not None:
                return True
            await asyncio.sleep(0.1)
        return False

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """``srun`` may take seconds to end behind its kernel."""
        return max(recommended, 30.0)
