from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from udi_jupyter.kernelspec import (
    PROVISIONER,
    SRUN_PROVISIONER,
    KernelSettings,
    default_name,
    install,
    installed,
    kernel_json,
    remove,
)

from udi_core import UdiError, UsageError

PYTHON = KernelSettings(image="docker:python:3.12-slim")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    return tmp_path


def test_the_provisioner_is_that_of_the_place() -> None:
    settings = KernelSettings.parse({"image": "docker:a", "srun": ["srun", "-t", "60"]})
    named = kernel_json(settings, "A")["metadata"]["kernel_provisioner"]
    assert named == {
        "provisioner_name": SRUN_PROVISIONER,
        "config": {"image": "docker:a", "srun": ("srun", "-t", "60")},
    }
    assert kernel_json(PYTHON, "A")["metadata"]["kernel_provisioner"]["provisioner_name"] == PROVISIONER


def test_only_a_kernel_that_encrypts_says_so() -> None:
    assert "supported_encryption" not in kernel_json(PYTHON, "A")["metadata"]
    assert kernel_json(PYTHON, "A", encrypts=True)["metadata"]["supported_encryption"] == "curve"


def test_what_is_installed_is_read_back_and_removed(data: Path) -> None:
    settings = KernelSettings(image="docker:a", volumes=("/x:/y:ro",), env={"K": "v"}, python="/opt/bin/python3")
    made = install(settings, name="a")
    assert [*installed()] == [made] and made.settings == settings
    (other := data / "kernels" / "other").mkdir()
    (other / "kernel.json").write_text(json.dumps({"argv": ["x"], "display_name": "Other", "language": "python"}))
    with pytest.raises(UsageError, match="no UDI kernel 'other'"):
        remove("other")
    remove("a")
    assert [*installed()] == [] and other.exists()


def test_a_damaged_kernelspec_is_listed_and_can_be_removed(data: Path) -> None:
    install(PYTHON, name="sound")
    install(PYTHON, name="damaged")
    file = data / "kernels" / "damaged" / "kernel.json"
    file.write_text(file.read_text().replace('"image"', '"picture"'))
    assert [(each.name, each.settings) for each in installed()] == [("damaged", None), ("sound", PYTHON)]
    remove("damaged")
    assert [each.name for each in installed()] == ["sound"]


def test_a_directory_that_cannot_be_written(data: Path) -> None:
    (data / "file").touch()
    with pytest.raises(UsageError, match="cannot be installed"):
        install(PYTHON, name="a", prefix=str(data / "file"))


def test_a_second_kernel_of_a_name_takes_the_place_of_the_first() -> None:
    install(PYTHON, name="a")
    install(KernelSettings(image="docker:b"), name="a")
    assert [each.settings.image for each in installed()] == ["docker:b"]


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("docker:python:3.12-slim", "udi-python-3.12-slim"),
        ("docker:ghcr.io/lab/x:1", "udi-x-1"),
        (f"docker:lab/x@sha256:{'a' * 64}", f"udi-x-sha256-{'a' * 64}"),
    ],
)
def test_a_kernel_is_named_after_its_image(image: str, name: str) -> None:
    assert default_name(image) == name


@pytest.mark.parametrize("name", ["A", "ä", "../a", "a/b", "-a", "a b"])
def test_names_that_jupyter_does_not_take(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a kernel"):
        install(PYTHON, name=name)
    assert [*installed()] == []


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"image": ""},
        {"image": "docker:a", "colour": "red"},
        {"image": "docker:UPPER CASE"},
        {"image": "docker:a", "volumes": ["/x:relative"]},
    ],
)
def test_settings_that_make_no_sense(config: dict[str, Any]) -> None:
    with pytest.raises(UdiError):
        KernelSettings.parse(config)
