"""The tests' own tools, tried on the real thing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support import images, oci, slurm, tools, user
from tests.support.registry import Registry, running_registry
from udi_core.manifest import DOCKER_MANIFEST, OCI_MANIFEST


def test_layout_is_what_the_specification_says(tmp_path: Path) -> None:
    layout = oci.Layout(tmp_path)
    lower = oci.Layer.of(oci.directory("a"), oci.file("a/x", "one"))
    upper = oci.Layer.of(oci.whiteout("a/x"), oci.opaque("a"), compression="zstd")
    image = layout.add_image([lower, upper], config={"Env": ["A=1"]})
    assert [each["mediaType"].rpartition("+")[2] for each in image.manifest["layers"]] == ["gzip", "zstd"]
    assert image.config["rootfs"]["diff_ids"] == [oci.digest_of(lower.data), oci.digest_of(upper.data)]
    with tarfile.open(fileobj=io.BytesIO(upper.data)) as archive:
        assert archive.getnames() == ["a/.wh.x", "a/.wh..wh..opq"]
    assert layout.read(layout.find("latest")) == image.manifest
    assert oci.Layout(tmp_path).find()["digest"] == image.digest


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("docker", [False, True])
def test_skopeo_reads_what_is_pushed(tmp_path: Path, push: Callable[..., str], docker: bool) -> None:
    layout = oci.Layout(tmp_path)
    images_ = [
        layout.add_image([oci.Layer.of(oci.file("v", each))], tag=None, platform=each, docker=docker)
        for each in ("linux/amd64", "linux/arm64")
    ]
    layout.add_index(images_, docker=docker)
    reference = push(layout, f"support/docker-{docker}".lower(), "v1")
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", reference.replace("docker:", "docker://")]
    index = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert [each["digest"] for each in index["manifests"]] == [each.digest for each in images_]
    assert index["manifests"][0]["mediaType"] == (DOCKER_MANIFEST if docker else OCI_MANIFEST)


@pytest.mark.needs("docker-registry")
def test_registry_leaves_nothing_running() -> None:
    with running_registry() as registry:
        assert requests.get(f"{registry.url}/v2/", timeout=5).ok
        storage = registry.storage
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{registry.url}/v2/", timeout=5)
    assert not storage.exists()


def test_blob_path_is_where_the_registry_keeps_it(tmp_path: Path, registry: Registry) -> None:
    layout = oci.Layout(tmp_path)
    image = layout.add_image([oci.Layer.of(oci.file("x", "y"))])
    registry.push(layout, "support/blob-path")
    assert registry.blob_path(image.digest).read_bytes() == layout.blob_path(image.digest).read_bytes()


@pytest.mark.needs(*images.TOOLS)
@pytest.mark.parametrize(
    ("name", "python"), [("base", "3.11"), ("trixie", "3.13"), ("bullseye", "3.9"), ("nopython", ""), ("tiny", "")]
)
def test_images_run(name: str, python: str, tmp_path: Path) -> None:
    layout = images.image(name)
    manifest = layout.read(layout.find())
    images.unpack((layout.blob_path(layer["digest"]) for layer in manifest["layers"]), tmp_path)
    inside = ["bwrap", "--ro-bind", str(tmp_path), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]

    def run(*argv: str) -> str:
        return subprocess.run([*inside, *argv], env={}, capture_output=True, text=True, check=True).stdout

    assert run("/bin/sh", "-c", "echo $((1+1))") == "2\n"
    assert (tmp_path / "bin/bash").exists() == (name != "tiny")
    if name != "tiny":
        assert run("/bin/bash", "-c", "head -1 /etc/passwd; ls -d /usr/share/doc").startswith("root:")
    if python:
        code = "import json, ctypes, ssl, sys, decimal; print(*sys.version_info[:2], sep='.', end='')"
        assert run("/usr/bin/python3", "-c", code) == python
        assert run("/usr/bin/python3", "-c", "import json; print(json.__cached__)").strip().startswith("/usr/lib")
        assert list(tmp_path.glob("usr/lib/python3*/json/__pycache__/*.pyc"))
    whiteouts = list(tmp_path.rglob(".wh.*"))
    assert bool(whiteouts) == (name != "tiny")


@pytest.mark.needs(*images.TOOLS)
def test_derived_image_keeps_its_base(tmp_path: Path) -> None:
    base = images.image("tiny")
    layout = images.derive(base, tmp_path, [oci.Layer.of(oci.file("etc/new", "1"))], env=["MORE=1"])
    manifest, below = layout.read(layout.find()), base.read(base.find())
    assert manifest["layers"][:-1] == below["layers"]
    config = layout.read(manifest["config"])
    assert config["config"]["Env"][-1] == "MORE=1"
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"])


def test_missing_tool_skips_on_a_laptop_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-tool not installed"):
        tools.need(["no-such-tool"])
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-tool not installed"):
        tools.need(["no-such-tool"])


@pytest.mark.root
@pytest.mark.needs(*slurm.TOOLS)
def test_a_slurm_leaves_nothing_running_whatever_its_jobs_do(tmp_path: Path) -> None:
    with slurm.virtual_slurm(tmp_path, 2) as cluster:
        ignoring = "#!/bin/sh\ntrap '' TERM HUP INT\nsetsid sleep 600 &\nwhile :; do sleep 1; done\n"
        script = tmp_path / "job.sh"
        script.write_text(ignoring)
        cluster.run("sbatch", "--output=/dev/null", str(script))
        deadline = time.monotonic() + 60
        while not cluster.run("squeue", "-h", "-t", "running").stdout:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert user.processes_of(str(tmp_path)) == []


def test_ordinary_user_is_ordinary(ordinary_user: user.OrdinaryUser) -> None:
    done = ordinary_user.run(["sh", "-c", "id -u; pwd; grep -c 'CapEff:\t0000000000000000' /proc/self/status"])
    assert done.stdout.split() == [str(ordinary_user.uid), str(ordinary_user.home), "1"]
    assert ordinary_user.uid != 0
    assert ordinary_user.run([ordinary_user.python, "-c", "import udi_core, requests; print(1)"]).stdout == "1\n"
    if os.getuid() == 0:
        assert not ordinary_user.can_read("/etc/shadow")


def test_udi_env_is_private(udi_env: dict[str, str]) -> None:
    assert not os.path.exists(udi_env["UDI_STORE"])
    assert not os.path.exists(udi_env["UDI_SITE_CONFIG"])
    assert "XDG_RUNTIME_DIR" not in udi_env
