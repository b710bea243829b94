"""The kernel provisioner: Jupyter asks it for a process, and it starts one inside an image.

Jupyter calls, in this order: ``pre_launch`` (pull, mount, build the sandbox), ``launch_kernel``, then ``poll``
and ``send_signal`` on the process.  Everything about sockets and life cycle stays
:class:`~jupyter_client.provisioning.LocalProvisioner`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from jupyter_client.multikernelmanager import MultiKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Bool, Dict, List, Unicode

from udi_core import ImageAbsent, Launch, UdiError, Volume, find, lazy_progress, load_config
from udi_jupyter.ending import record_end
from udi_jupyter.inside import inside
from udi_jupyter.ipykernel import provide
from udi_jupyter.kernelspec import START, KernelSettings


class UdiProvisioner(LocalProvisioner):
    """Starts a kernel inside an image on this machine; its traits are the settings of the kernelspec."""

    image = Unicode(config=True)
    python = Unicode(config=True)
    volumes = List(Unicode(), config=True)
    env = Dict(config=True)
    srun = List(Unicode(), config=True)
    bridge = Bool(config=True)

    _resources: contextlib.ExitStack | None = None
    _launch: Launch | None = None
    _asked = _began = 0.0

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Pull the image if it is missing, mount it, and put the sandbox's command line in front of the kernel's.

        Raises:
            RuntimeError: with UDI's three-part message, which Jupyter's front ends show to the user.
        """
        kwargs = await super().pre_launch(**kwargs)
        loop = asyncio.get_running_loop()
        try:
            # Pulling takes minutes: the server must go on answering meanwhile.
            return await loop.run_in_executor(None, self._enter_image, kwargs)
        except UdiError as error:
            raise RuntimeError(str(error)) from error

    @property
    def settings(self) -> KernelSettings:
        """What the kernelspec says, checked."""
        names = KernelSettings.__dataclass_fields__
        return KernelSettings.parse({name: getattr(self, name) for name in names if getattr(self, name)})

    def _enter_image(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._leave_image()
        self._asked = time.time()
        manager: Any = self.parent
        # The connection file must be there at the path that Jupyter knows.
        runtime = os.path.dirname(os.path.realpath(manager.connection_file))
        # Older releases of jupyter_client know no encryption.
        encrypted = getattr(manager, "curve_publickey", None) is not None
        if isinstance(manager.parent, MultiKernelManager) and not self._is_here(kwargs["env"]):
            # A server: its users look at a browser, which standard error does not reach.
            request = json.dumps({"settings": asdict(self.settings), "encrypted": encrypted})
            arguments = kwargs["cmd"][len(START) + 1 :]  # without "-f", which may only stand before the file
            kwargs["cmd"] = [sys.executable, "-m", "udi_jupyter.waiting", request, *arguments]
            return kwargs
        # Standard error is the terminal of jupyter console and nbclient, and the log of a server.
        with lazy_progress() as progress, contextlib.ExitStack() as resources:
            image = inside(self.settings, progress=progress, environ=kwargs["env"], cwd=kwargs.get("cwd"))
            kernel = resources.enter_context(image)
            ipykernel = provide(kernel, progress, encrypted=encrypted)
            launch = kernel.launch(
                kernel.python,
                *ipykernel.start,
                *kwargs["cmd"][len(START) :],
                support=(*ipykernel.support, Volume(source=runtime, target=runtime)),
                calls=resources.enter_context(kernel.host_calls()),
            )
            self._resources = resources.pop_all()
        # Jupyter sets JPY_PARENT_PID after this method, and a kernel whose parent is bwrap takes another parent
        # for the death of the server and leaves.
        self._launch, self._began = launch, time.time()
        kwargs["cmd"] = ["/usr/bin/env", "--unset=JPY_PARENT_PID", *launch.argv]
        kwargs["env"] = dict(launch.env)
        kwargs["pass_fds"] = launch.pass_fds
        return kwargs

    def _is_here(self, environ: dict[str, str]) -> bool:
        try:
            find(self.settings.image, load_config(environ), pull_missing=False)
        except ImageAbsent:
            return False
        return True

    async def wait(self) -> int | None:
        """The kernel's status, once it has ended; the run record then has its line."""
        status = await super().wait()
        launch, self._launch = self._launch, None
        if launch is not None:
            record_end(launch, asked=self._asked, began=self._began, status=status or 0)
        return status

    async def cleanup(self, restart: bool = False) -> None:
        """Give the image up; a restart takes it again."""
        self._leave_image()
        await super().cleanup(restart=restart)

    def _leave_image(self) -> None:
        if self._resources is not None:
            self._resources.close()
            self._resources = None
