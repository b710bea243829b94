"""The site's rules, on values; what they do to volumes is in test_sandbox.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from udi_core.config import load_config
from udi_core.errors import ConfigError, PolicyError
from udi_core.policy import Policy, check_reference
from udi_core.reference import ImageReference

SITE = """
volumes: [/site:/site]
modules: {mpi: {volumes: [/opt/mpi:/mpi]}}
mirrors: {docker.io: [https://mirror.site.example]}
policy: {registries: [docker.io, ghcr.io/lab/*], denied_registries: [docker.io/library/evil*]}
"""
USER = """
volumes: [/mine:/mine]
modules: {own: {volumes: [/own:/own]}}
use_modules: [mpi, own]
mirrors: {docker.io: [https://mirror.site.example, "http://elsewhere.example/hub/"]}
"""


def environ(directory: Path, site: str, user: str) -> dict[str, str]:
    (directory / "site.yaml").write_text(site)
    (directory / "user.yaml").write_text(user)
    return {
        "HOME": str(directory),
        "UDI_SITE_CONFIG": str(directory / "site.yaml"),
        "UDI_CONFIG": str(directory / "user.yaml"),
    }


@pytest.mark.parametrize("name", ["ubuntu", "docker://docker.io/a/b:1", "ghcr.io/lab/x", "id:0123456789ab"])
def test_what_is_allowed(name: str) -> None:
    check_reference(Policy(registries=("docker.io", "ghcr.io/lab/*")), ImageReference.parse(name))


@pytest.mark.parametrize("name", ["ghcr.io/other/x", "ghcr.io/labs", "docker.io.evil.example/x", "evil", "evil2:tag"])
def test_what_is_not(name: str) -> None:
    policy = Policy(registries=("docker.io", "ghcr.io/lab/*"), denied_registries=("docker.io/library/evil*",))
    with pytest.raises(PolicyError) as caught:
        check_reference(policy, ImageReference.parse(name))
    assert caught.value.details and caught.value.hint


@pytest.mark.parametrize("mirror", ["http://elsewhere.example/hub/", "elsewhere.example:5000", "https://ghcr.io/other"])
def test_a_mirror_must_be_allowed_as_well(mirror: str) -> None:
    policy = Policy(registries=("docker.io", "ghcr.io/lab/*"))
    check_reference(policy, ImageReference.parse("ubuntu"), ["https://ghcr.io/lab"])
    with pytest.raises(PolicyError, match=r"elsewhere|other"):
        check_reference(policy, ImageReference.parse("ubuntu"), [mirror])


def test_what_the_site_names_is_told_from_what_the_user_names(tmp_path: Path) -> None:
    if Path("/etc/udi/config.yaml").exists():
        pytest.skip("this machine has a site's file")
    config = load_config(environ(tmp_path, SITE, USER))
    assert config.volumes == ("/site:/site", "/mine:/mine", "/opt/mpi:/mpi", "/own:/own")
    assert config.from_site == {"/site:/site", "/opt/mpi:/mpi", "https://mirror.site.example"}
    assert config.policy.registries == ("docker.io", "ghcr.io/lab/*")


@pytest.mark.parametrize(
    ("site", "user", "says"),
    [
        ("", "policy: {}", "user.yaml sets policy"),
        ("policy: []", "", "site.yaml sets policy to a wrong value"),
        ("policy: {registry: [x]}", "", "policy.registry is not known"),
        ("policy: {local_images: [x]}", "", "policy.local_images"),
        ("policy: {registries: ghcr.io}", "", "policy.registries"),
    ],
)
def test_a_policy_that_is_wrong_is_no_policy_that_is_ignored(tmp_path: Path, site: str, user: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environ(tmp_path, site, user))
    assert says in str(caught.value)
