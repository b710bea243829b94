from __future__ import annotations

import os
from pathlib import Path

import pytest
from udi_jupyter import ipykernel
from udi_jupyter.ipykernel import Kind


@pytest.fixture
def kind() -> Kind:
    return Kind(tag="cpython-39", version="3.9", libc="glibc 2.31", machine="aarch64")


def test_a_kind_of_python_is_a_directory_name(kind: Kind) -> None:
    assert kind.name == "cpython-39-glibc2.31-aarch64"


def test_wheels_for_newer_c_libraries_are_not_taken(kind: Kind) -> None:
    platforms = list(kind.platforms())
    assert platforms[0] == "manylinux_2_31_aarch64"
    assert platforms[-2:] == ["manylinux_2_5_aarch64", "manylinux1_aarch64"]
    assert platforms.index("manylinux_2_17_aarch64") + 1 == platforms.index("manylinux2014_aarch64")
    assert "manylinux_2_32_aarch64" not in platforms


def test_what_was_lent_is_removed_and_removing_nothing_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ipykernel.remove_lent() == []
    os.makedirs(os.path.join(ipykernel.lent_directory(), "cpython-39-glibc2.31-x86_64", "zmq"))
    assert ipykernel.remove_lent() == ["cpython-39-glibc2.31-x86_64"]
    assert not os.path.exists(ipykernel.lent_directory())
