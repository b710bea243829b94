"""Fixtures that every test may use; ``tests/support`` holds what they are made of."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import environment, images, oci, tools, user
from tests.support import registry as registries


def pytest_configure() -> None:
    """Undo what a shell's ``&`` does: with SIGINT ignored from the start, no test could interrupt what it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", default="40", metavar="[FIRST:]COUNT", help="layers at random to compare with umoci's")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``@pytest.mark.needs("bwrap", …)`` and ``@pytest.mark.root``."""
    for marker in item.iter_markers("needs"):
        tools.need(marker.args)
    if item.get_closest_marker("root") and os.getuid() != 0:
        pytest.skip("needs root; CI runs the tests as root too")


@pytest.fixture(scope="session", autouse=True)
def _no_site_configuration() -> Iterator[None]:
    """Keep the configuration of this machine and of its user out of all tests."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="udi-config-") as empty:
        for name in [each for each in os.environ if each.startswith("UDI_") and not each.startswith("UDI_TEST_")]:
            patch.delenv(name)
        patch.setenv("UDI_SITE_CONFIG", os.path.join(empty, "site.yaml"))
        patch.setenv("UDI_CONFIG", os.path.join(empty, "user.yaml"))
        yield


@pytest.fixture(scope="session")
def registry() -> Iterator[registries.Registry]:
    """A real registry on a loopback port, empty at first and shared by the session: use repositories of your own."""
    tools.need(registries.TOOLS)
    with registries.running_registry() as running:
        yield running


@pytest.fixture(scope="session")
def push(registry: registries.Registry) -> Callable[..., str]:
    """``push(layout, repository="test/image", tag="latest", source=None)`` -> ``docker:127.0.0.1:PORT/…``."""

    def pushed(
        layout: oci.Layout | Path, repository: str = "test/image", tag: str = "latest", source: str | None = None
    ) -> str:
        return registry.push(layout, repository, tag, source=source)

    return pushed


def _real_image(name: str) -> Callable[..., str]:
    @pytest.fixture(scope="session", name=f"{name}_image")
    def reference(registry: registries.Registry) -> str:
        tools.need(images.TOOLS)
        return registry.push(images.image(name), f"debian/{name}")

    reference.__doc__ = f"Reference of the image {name!r} in the session's registry; see tests/support/images.py."
    return reference


base_image = _real_image("base")
trixie_image = _real_image("trixie")
bullseye_image = _real_image("bullseye")
nopython_image = _real_image("nopython")
tiny_image = _real_image("tiny")


@pytest.fixture
def udi_env() -> Iterator[dict[str, str]]:
    """The environment of a process with a store and a node directory of its own; see tests/support/environment.py."""
    with environment.own_environment() as env:
        yield env


@pytest.fixture
def ordinary_user() -> Iterator[user.OrdinaryUser]:
    """An ordinary user that reaches this clone and its interpreter; see tests/support/user.py."""
    with user.for_tests() as account:
        yield account
