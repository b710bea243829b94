"""Rules in container images, for the release of Snakemake that loads software deployment plugins.

What is deployed is a pointer file; the image stays in UDI's store, once for all workflows.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_common.software import SoftwareReport
from snakemake_interface_software_deployment_plugins import (
    CacheableEnvBase,
    DeployableEnvBase,
    EnvSpecBase,
    PinnableEnvBase,
)
from snakemake_interface_software_deployment_plugins.settings import CommonSettings, SoftwareDeploymentSettingsBase
from udi_snakemake import activation, images, lock, pulling, resolving, workflow

from udi_core import ImageReference, UdiError

#: Not "container": Snakemake allows one plugin for each kind, and that one is the official plugin's.
common_settings = CommonSettings(provides="udi")


@dataclass
class Settings(SoftwareDeploymentSettingsBase):  # type: ignore[misc]
    mountpoints: list[str] = field(
        default_factory=list,
        metadata={"nargs": "+", "help": "Further paths to show in the image, as HOST:IMAGE[:ro]."},
    )


@dataclass(eq=False)
class EnvSpec(EnvSpecBase):  # type: ignore[misc]
    """``image`` is a reference, or the path of an image file."""

    image: str

    @classmethod
    def identity_attributes(cls) -> Iterable[str]:
        return ("image",)

    @classmethod
    def source_path_attributes(cls) -> Iterable[str]:
        return ()

    def __str__(self) -> str:
        return self.image


class Env(PinnableEnvBase, CacheableEnvBase, DeployableEnvBase):  # type: ignore[misc]
    spec: EnvSpec
    settings: Settings

    def is_deployable(self) -> bool:
        return isinstance(self._named(), ImageReference) and not os.path.isfile(self.spec.image)

    def is_cacheable(self) -> bool:
        return self.is_deployable()

    def is_pinnable(self) -> bool:
        """Only a registry's tag moves."""
        named = self._named()
        return isinstance(named, ImageReference) and named.transport == "docker" and named.digest is None

    @classmethod
    def pinfile_extension(cls) -> str:
        return ".lock"

    async def pin(self) -> None:
        await asyncio.to_thread(self._pin)

    async def get_cache_assets(self) -> Iterable[str]:
        return (self._pointer_name(),)

    async def cache_asset(self, asset: str, to_path: Path) -> None:
        # The interface makes an empty file there first.
        to_path.unlink(missing_ok=True)
        await asyncio.to_thread(self._fetch, to_path)

    async def deploy(self) -> None:
        await asyncio.to_thread(self._deploy)

    def is_deployment_path_portable(self) -> bool:
        return True

    def remove(self) -> None:
        """The image stays: other workflows may use it, and ``udi gc`` takes away what none does."""
        self._deployed().unlink(missing_ok=True)

    def decorate_shellcmd(self, cmd: str) -> str:
        front = os.path.join(activation.front_directory(), "apptainer")
        variables = activation.variables({"PATH": ""})
        switch = [f"{name}={variables[name]}" for name in (activation.PYTHON, activation.SWITCH)]
        cwd = os.getcwd()
        shown = dict.fromkeys([cwd, str(self.tempdir), *map(str, self.mountpoints), *self.settings.mountpoints])
        binds = [word for path in shown for word in ("--bind", path)]
        image = str(self._deployed()) if self.is_deployable() else os.path.abspath(self.spec.image)
        shell = self.shell_executable
        command = [shell.name, *shell.args, shell.command_arg, cmd]
        return shlex.join(["env", *switch, front, "exec", "--cwd", cwd, *binds, image, *command])

    def contains_executable(self, executable: str) -> bool:
        test = self.decorate_shellcmd(f"command -v {shlex.quote(executable)}")
        return bool(self.run_cmd(test, capture_output=True).returncode == 0)

    def record_hash(self, hash_object: Any) -> None:
        hash_object.update(self.spec.image.encode())

    def record_deployment_hash(self, hash_object: Any) -> None:
        super().record_deployment_hash(hash_object)
        # What is pinned anew is deployed anew.
        hash_object.update(self._wanted().encode())

    def report_software(self) -> Iterable[SoftwareReport]:
        name, _, digest = self._wanted().partition("@")
        return (SoftwareReport(name=name, version=digest or None),)

    def _named(self) -> Any:
        with _translated():
            return images.understand(self.spec.image, os.getcwd())

    def _wanted(self) -> str:
        """The image to run: by digest where it is pinned."""
        named = self._named()
        if not self.is_pinnable() or not self.pinfile.exists():
            return self.spec.image
        with _translated():
            locked = lock.load(str(self.pinfile)).images.get(str(named))
            return str(resolving.pin(named, locked.digest)) if locked else self.spec.image

    def _pin(self) -> None:
        with _translated():
            before = workflow.empty_lock(str(self.pinfile))
            after, _ = workflow.lock_images([self.spec.image], before, os.getcwd(), str(self.deployment_prefix))
            lock.dump(after)

    def _fetch(self, path: Path) -> None:
        with _translated():
            pulling.fetch(self._wanted(), str(path))

    def _deploy(self) -> None:
        path = self._deployed()
        path.parent.mkdir(parents=True, exist_ok=True)
        cached = self.get_cache_asset_path(self._pointer_name())
        if cached.exists() and not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(cached.read_bytes())
            temporary.replace(path)
        # Sees to it that the image is in the store, whoever has removed it since.
        self._fetch(path)

    def _deployed(self) -> Path:
        path: Path = self.deployment_path / "image.simg"
        return path

    def _pointer_name(self) -> str:
        return f"{self.deployment_hash()}.simg"


@contextmanager
def _translated() -> Iterator[None]:
    """UDI's errors as Snakemake shows them: without a traceback."""
    try:
        yield
    except UdiError as error:
        raise WorkflowError(str(error)) from error
