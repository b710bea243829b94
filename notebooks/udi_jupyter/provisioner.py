"""The kernel provisioner: Jupyter asks it for a process, and it starts one inside an image.

Jupyter calls, in this order: ``pre_launch`` (pull, mount, build the sandbox), ``launch_kernel``, then ``poll``
and ``send_signal`` on the process.  Everything about sockets and life cycle stays
:class:`~jupyter_client.provisioning.LocalProvisioner`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Dict, List, Unicode

from udi_core import (
    Host,
    ImageStore,
    LaunchSpec,
    NodeMounts,
    Progress,
    StoredImage,
    UdiError,
    UnsupportedImage,
    Volume,
    build,
    find,
    load_config,
    run,
)
from udi_jupyter.kernelspec import KernelSettings

_HAS_IPYKERNEL = "import importlib.util as u, sys; sys.exit(u.find_spec('ipykernel') is None)"


class UdiProvisioner(LocalProvisioner):
    """Starts a kernel inside an image on this machine; its traits are the settings of the kernelspec."""

    image = Unicode(config=True)
    python = Unicode(config=True)
    volumes = List(Unicode(), config=True)
    env = Dict(config=True)

    _resources: contextlib.ExitStack | None = None

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

    def _enter_image(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._leave_image()
        names = KernelSettings.__dataclass_fields__
        settings = KernelSettings.parse({name: getattr(self, name) for name in names if getattr(self, name)})
        environ = dict(kwargs["env"])
        config = load_config(environ)
        image = find(settings.image, config, progress=self._show)
        python = settings.python or _python(image)
        manager: Any = self.parent
        runtime = os.path.dirname(os.path.realpath(manager.connection_file))
        with contextlib.ExitStack() as resources:
            mounted = resources.enter_context(NodeMounts(config, ImageStore(config.store)).mount(image, self._show))

            def launch(*command: str) -> Any:
                spec = LaunchSpec(
                    command=command,
                    # The connection file must be there at the path that Jupyter knows.
                    volumes=(Volume(source=runtime, target=runtime), *map(Volume.parse, settings.volumes)),
                    env=settings.env,
                    environ=environ,
                    cwd=str(kwargs.get("cwd") or os.getcwd()),
                    die_with_parent=True,
                )
                return build(spec, mounted, config, Host.observe(mounted, environ=environ, cwd=spec.cwd))

            check = launch(python, "-c", _HAS_IPYKERNEL)
            if run(check.argv, env=check.env, pass_fds=check.pass_fds, check=False).returncode:
                raise UnsupportedImage(
                    f"{settings.image} has no ipykernel",
                    f"{python} in the image cannot import it.",
                    "Add it to the image: pip install ipykernel",
                )
            chosen = launch(python, *kwargs["cmd"][1:])
            self._resources = resources.pop_all()
        # Jupyter sets JPY_PARENT_PID after this method, and a kernel whose parent is bwrap takes another parent
        # for the death of the server and leaves.
        kwargs["cmd"] = ["/usr/bin/env", "--unset=JPY_PARENT_PID", *chosen.argv]
        kwargs["env"] = dict(chosen.env)
        kwargs["pass_fds"] = chosen.pass_fds
        return kwargs

    async def cleanup(self, restart: bool = False) -> None:
        """Give the image up; a restart takes it again."""
        self._leave_image()
        await super().cleanup(restart=restart)

    def _leave_image(self) -> None:
        if self._resources is not None:
            self._resources.close()
            self._resources = None

    def _show(self, event: Progress) -> None:
        """Long work goes to the log of whoever starts the kernel."""
        if event.total and event.done == event.total:
            self.log.info("udi: %s %s: done", event.phase, event.item)
        else:
            self.log.debug("udi: %s %s: %d of %s %s", event.phase, event.item, event.done, event.total, event.note)


def _python(image: StoredImage) -> str:
    if image.python is None:
        raise UnsupportedImage(
            f"{image.reference} has no Python 3",
            "None was found along the image's PATH.",
            "Name it: udi kernel install --python PATH; or use another image.",
        )
    return image.python.path
