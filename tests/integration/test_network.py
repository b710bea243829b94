"""How a registry is reached: a certificate authority of the site's own, and a proxy; both real, on loopback ports."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.faulty_registry import FaultyRegistry, faulty_registry
from tests.fakes.proxy import Proxy, forwarding_proxy
from tests.support import certificates, oci
from tests.support.command import three_parts, tree, udi_here

pytestmark = pytest.mark.needs("tar2sqfs", *certificates.TOOLS)

NAME = "registry.test"  # never to be found in any DNS (RFC 6761)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> certificates.Authority:
    return certificates.make(tmp_path_factory.mktemp("authority"), f"DNS:{NAME}", "IP:127.0.0.1")


@pytest.fixture(scope="module")
def secure(authority: certificates.Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyRegistry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    with faulty_registry(tmp_path_factory.mktemp("secure"), context) as registry:
        registry.layout.add_image([oci.Layer.of(oci.file("data", os.urandom(5_000_000)))])
        yield registry


@pytest.fixture
def proxy(secure: FaultyRegistry) -> Iterator[Proxy]:
    address = ("127.0.0.1", int(secure.host.rpartition(":")[2]))
    with forwarding_proxy({f"{NAME}:443": address, "wrong.test:443": address}) as running:
        yield running


@pytest.fixture
def env(udi_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Without the proxies of this machine."""
    kept = {key: value for key, value in udi_env.items() if not key.lower().endswith("_proxy")}
    return {**kept, "UDI_CONFIG": str(tmp_path / "config.yaml")}


def through(proxy: Proxy, user: str = "") -> dict[str, str]:
    return {"https_proxy": proxy.url.replace("://", f"://{user}@" if user else "://")}


def test_a_registry_with_an_authority_of_the_sites_own(
    secure: FaultyRegistry, authority: certificates.Authority, env: dict[str, str]
) -> None:
    Path(env["UDI_CONFIG"]).write_text(f"mirrors: {{{NAME}: https://{secure.host}}}\n")
    done = udi_here("pull", f"{NAME}/faulty/image", env={**env, "UDI_CA_FILE": str(authority.ca)})
    assert done.returncode == 0, done.stderr


def test_pulling_through_a_proxy(proxy: Proxy, authority: certificates.Authority, env: dict[str, str]) -> None:
    done = udi_here("pull", f"{NAME}/faulty/image", env={**env, **through(proxy), "UDI_CA_FILE": str(authority.ca)})
    assert done.returncode == 0, done.stderr
    assert {each.rpartition(" ")[0] for each in proxy.requests} == {f"CONNECT {NAME}:443"}


def test_an_unknown_authority_says_how_to_name_it(proxy: Proxy, env: dict[str, str]) -> None:
    three_parts(udi_here("pull", f"{NAME}/faulty/image", env={**env, **through(proxy)}), 69, "UDI_CA_FILE", NAME)


def test_a_certificate_of_another_name(proxy: Proxy, authority: certificates.Authority, env: dict[str, str]) -> None:
    wanted = {**env, **through(proxy), "UDI_CA_FILE": str(authority.ca)}
    three_parts(udi_here("pull", "wrong.test/faulty/image", env=wanted), 69, "wrong.test", "mismatch")
    assert tree(env["UDI_STORE"]) == []


def test_a_ca_file_that_is_none(proxy: Proxy, env: dict[str, str], tmp_path: Path) -> None:
    for path, text in ((tmp_path / "none.pem", None), (tmp_path / "odd.pem", "no certificate")):
        if text:
            path.write_text(text)
        done = udi_here("pull", f"{NAME}/faulty/image", env={**env, **through(proxy), "UDI_CA_FILE": str(path)})
        three_parts(done, 78, str(path))


def test_a_proxy_that_wants_a_password(proxy: Proxy, authority: certificates.Authority, env: dict[str, str]) -> None:
    proxy.password = "me:secret"
    wanted = {**env, "UDI_CA_FILE": str(authority.ca)}
    done = udi_here("pull", f"{NAME}/faulty/image", env={**wanted, **through(proxy, "me:wrong-secret")})
    three_parts(done, 69, "407", "https_proxy")
    assert "wrong-secret" not in done.stderr
    assert udi_here("pull", f"{NAME}/faulty/image", env={**wanted, **through(proxy, "me:secret")}).returncode == 0


def test_plain_http_through_a_proxy_where_it_is_configured(tmp_path: Path, env: dict[str, str]) -> None:
    with faulty_registry(tmp_path / "plain") as registry:
        registry.layout.add_image([oci.Layer.of(oci.file("x", "x"))])
        address = ("127.0.0.1", int(registry.host.rpartition(":")[2]))
        with forwarding_proxy({"plain.test:80": address}) as proxy:
            wanted = {**env, "http_proxy": proxy.url, "UDI_INSECURE_REGISTRIES": "plain.test"}
            done = udi_here("pull", "plain.test/faulty/image", env=wanted)
            assert done.returncode == 0, done.stderr
            assert all(each.startswith("GET http://plain.test/v2/") for each in proxy.requests)
