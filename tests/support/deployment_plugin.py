"""The interface's own tests, for UDI's plugin; run by test_snakemake_deployment.py in an environment of its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import snakemake_interface_software_deployment_plugins.tests as interface
import snakemake_software_deployment_plugin_udi as plugin
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_software_deployment_plugins.registry import SoftwareDeploymentPluginRegistry


class OfUdi(interface.TestSoftwareDeploymentBase):
    image = os.environ["TEST_IMAGE"]

    def get_env_spec(self) -> Any:
        spec = plugin.EnvSpec(image=self.image)
        spec.technical_init()
        return spec

    def get_env_cls(self) -> Any:
        return plugin.Env

    def get_test_cmd(self) -> str:
        return "test -e /opt/marker && fit"

    def get_settings(self) -> Any:
        return plugin.Settings()

    def get_settings_cls(self) -> Any:
        return plugin.Settings

    def get_contained_executable(self) -> str:
        return "fit"


class TestDeployable(OfUdi):
    """An image in a registry."""

    __test__ = True
    test_shellcmd = None  # of environments that need no deployment; see below

    def test_what_is_pinned_is_deployed_whatever_the_tag_names(self, tmp_path: Path) -> None:
        env = self._get_env(tmp_path)
        asyncio.run(env.pin())
        env.clear_hashes()
        (report,) = env.report_software()
        assert report.version.startswith("sha256:")
        self._deploy(env, tmp_path)
        assert report.version in (env.deployment_path / "image.simg").read_text()
        env.managed_remove()
        assert not (env.deployment_path / "image.simg").exists()

    def test_settings_and_odd_words(self, tmp_path: Path) -> None:
        env = self._get_env(tmp_path)
        (tmp_path / "data").mkdir()
        env.settings = plugin.Settings(mountpoints=[f"{tmp_path}/data:/my data:ro"])
        self._deploy(env, tmp_path)
        cmd = env.managed_decorate_shellcmd(
            "test -d '/my data' && ! touch '/my data/x' && pwd && echo \"it's $((1+1))\""
        )
        done = self.shell_executable.run(cmd, capture_output=True, text=True)
        assert done.stdout.splitlines() == [os.getcwd(), "it's 2"], done.stderr

    def test_what_is_wrong_is_said(self, tmp_path: Path) -> None:
        env = self._get_env(tmp_path)
        env.spec.image = "library://lab/tool:1"
        with pytest.raises(WorkflowError, match="UDI does not know library:"):
            asyncio.run(env.managed_deploy())


class TestFile(OfUdi):
    """An image file: there is nothing to deploy."""

    __test__ = True
    image = os.environ["TEST_FILE"]
    test_contains_executable = test_deploy = test_cache = test_pin = None


def test_snakemakes_registry_takes_the_plugin() -> None:
    registry = SoftwareDeploymentPluginRegistry()
    registry.collect_plugins()
    found = registry.get_plugin("udi")
    assert found.common_settings.provides == "udi"
