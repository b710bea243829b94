"""Kernelspecs of kernels that run inside an image: what they hold, and installing, listing, removing them.

A kernelspec names this package's kernel provisioner and carries its settings, so that every Jupyter program
(JupyterLab, ``jupyter console``, nbclient, papermill) starts the kernel in the image without knowing of UDI.
Source: jupyter_client, "Kernel provisioning" and "Making kernels for Jupyter".
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from udi_core import ImageReference, UsageError, Volume

#: The kernel provisioners, as pyproject.toml names them: here, and on another node.
PROVISIONER, SRUN_PROVISIONER = "udi-provisioner", "udi-srun-provisioner"

#: The beginning of a kernelspec's argv; the provisioner puts the image's Python and ipykernel in its place.
#: Jupyter rewrites an argv[0] that is called "python3" to its own interpreter, hence the name.
START = ("udi-python", "-m", "ipykernel_launcher")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """What the provisioner needs to start one kernel.

    Attributes:
        image: an image reference, as a person wrote it.
        python: the image's Python: a path, or a name that is looked up along the image's PATH.
        volumes: ``SRC:DST[:ro]`` each.
        env: set in the kernel, above the image's own environment.
        srun: the command that starts programs on another node; empty for a kernel on this one.
        bridge: let the kernel call the node's ``sbatch``, ``srun`` and so on, as far as the site allows.
    """

    image: str
    python: str = ""
    volumes: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    srun: tuple[str, ...] = ()
    bridge: bool = False

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> KernelSettings:
        """Read the ``config`` of a kernelspec's ``kernel_provisioner``.

        Raises:
            UsageError: a setting is missing, unknown or malformed.
        """
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        unknown = sorted(set(config) - set(known))
        if unknown or not known.get("image"):
            what = f"unknown: {', '.join(unknown)}" if unknown else "the image is missing"
            raise UsageError(
                "The kernelspec's settings cannot be read",
                f"In metadata.kernel_provisioner.config: {what}.",
                "Install the kernel anew: udi kernel install --image REF",
            )
        settings = cls(
            image=str(known["image"]),
            python=str(known.get("python", "")),
            volumes=tuple(known.get("volumes", ())),
            env={str(key): str(value) for key, value in known.get("env", {}).items()},
            srun=tuple(known.get("srun", ())),
            bridge=known.get("bridge") is True,
        )
        ImageReference.parse(settings.image)
        for volume in settings.volumes:
            Volume.parse(volume)
        return settings


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledKernel:
    """A kernelspec of this package, as found on disk; without settings if those cannot be read."""

    name: str
    display_name: str
    directory: str
    settings: KernelSettings | None


def default_name(image: str) -> str:
    """A kernel name for an image: ``udi-python-3.12-slim`` for ``docker:python:3.12-slim``."""
    short = ImageReference.parse(image).short
    return "udi-" + re.sub(r"[^a-z0-9._-]+", "-", short.lower().rpartition("/")[2]).strip("-.")


def kernel_json(settings: KernelSettings, display_name: str, *, encrypts: bool = False) -> dict[str, Any]:
    """The contents of ``kernel.json``; ``encrypts`` tells Jupyter that the kernel can (``transport_encryption``)."""
    config = {key: value for key, value in asdict(settings).items() if value}
    return {
        "argv": [*START, "-f", "{connection_file}"],
        "display_name": display_name,
        "language": "python",
        # A signal would reach bwrap, and not every image's shell or Python start-up passes it on.
        "interrupt_mode": "message",
        "metadata": {
            "debugger": True,
            **({"supported_encryption": "curve"} if encrypts else {}),
            "kernel_provisioner": {
                "provisioner_name": SRUN_PROVISIONER if settings.srun else PROVISIONER,
                "config": config,
            },
        },
    }


def install(
    settings: KernelSettings,
    *,
    name: str | None = None,
    display_name: str | None = None,
    prefix: str | None = None,
    encrypts: bool = False,
) -> InstalledKernel:
    """Write a kernelspec, in the place of one of the same name; for the user, or under ``prefix``.

    Raises:
        UsageError: ``name`` cannot be a kernel name, or the directory cannot be written.
    """
    from jupyter_client.kernelspec import KernelSpecManager

    name = name or default_name(settings.image)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a kernel",
            "Jupyter allows lower-case letters, digits, '.', '_' and '-'.",
            f"For example: --name {re.sub(r'[^a-z0-9._-]+', '-', name.lower()).strip('-.') or 'my-kernel'}",
        )
    where = "UDI, srun" if settings.srun else "UDI"
    display_name = display_name or f"Python in {ImageReference.parse(settings.image).short} ({where})"
    with tempfile.TemporaryDirectory() as staging:
        with open(os.path.join(staging, "kernel.json"), "w") as file:
            json.dump(kernel_json(settings, display_name, encrypts=encrypts), file, indent=1)
        try:
            directory = KernelSpecManager().install_kernel_spec(staging, name, user=prefix is None, prefix=prefix)
        except OSError as error:
            raise UsageError(
                f"The kernel {name!r} cannot be installed", str(error), "Choose another directory: --prefix DIR"
            ) from error
    return InstalledKernel(name=name, display_name=display_name, directory=directory, settings=settings)


def installed() -> Iterator[InstalledKernel]:
    """The kernels of this package that Jupyter would find, by name."""
    from jupyter_client.kernelspec import KernelSpecManager

    for name, found in sorted(KernelSpecManager().get_all_specs().items()):
        provisioner = found["spec"].get("metadata", {}).get("kernel_provisioner", {})
        if provisioner.get("provisioner_name") in (PROVISIONER, SRUN_PROVISIONER):
            settings = None
            with contextlib.suppress(UsageError):
                settings = KernelSettings.parse(provisioner.get("config", {}))
            yield InstalledKernel(
                name=name,
                display_name=found["spec"]["display_name"],
                directory=found["resource_dir"],
                settings=settings,
            )


def remove(name: str) -> InstalledKernel:
    """Remove a kernelspec of this package; others are not touched.

    Raises:
        UsageError: there is none of that name, or it is somebody else's.
    """
    for kernel in installed():
        if kernel.name == name:
            try:
                shutil.rmtree(kernel.directory)
            except OSError as error:
                raise UsageError(
                    f"The kernel {name!r} cannot be removed", str(error), "Whoever installed it can remove it."
                ) from error
            return kernel
    raise UsageError(f"There is no UDI kernel {name!r}", "", "List them: udi kernel list")
