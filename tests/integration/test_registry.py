"""The registry client against servers that fail, redirect, and ask for tokens; and against a real registry."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fakes.faulty_registry import FaultyRegistry, faulty_registry
from tests.support import oci
from tests.support.registry import Registry, running_registry
from udi_core.credentials import Credential, Credentials
from udi_core.errors import AccessDenied, CorruptImage, ImageNotFound, RegistryError
from udi_core.manifest import Descriptor, Manifest, parse_manifest
from udi_core.registry import RegistryClient, RegistryOptions

SIZES = (9_000_000, 5_000_000, 100)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[FaultyRegistry]:
    with faulty_registry(tmp_path / "served") as registry:
        registry.layout.add_image([oci.Layer.of(oci.file("x", os.urandom(size)), compression="") for size in SIZES])
        yield registry


def client(host: str, repository: str = "faulty/image", **options: object) -> RegistryClient:
    credentials = Credentials(fixed=options.pop("credential", None), environ={})  # type: ignore[arg-type]
    return RegistryClient(
        host,
        repository,
        RegistryOptions(**options),  # type: ignore[arg-type]
        credentials,
        pause=lambda seconds: None,
    )


def layers_of(registry: RegistryClient) -> tuple[Descriptor, ...]:
    manifest = parse_manifest(*registry.manifest("latest"))
    assert isinstance(manifest, Manifest)
    return manifest.layers


def read_all(registry: RegistryClient) -> int:
    """Read every layer, top first, as flattening does; each is checked against its digest."""
    layers = layers_of(registry)[::-1]
    registry.expect(layers)
    return sum(len(piece) for layer in layers for piece in registry.stream(layer))


def total(registry: FaultyRegistry) -> int:
    return sum(layer["size"] for layer in registry.layout.read(registry.layout.find())["layers"])


def test_large_layers_come_by_several_ranges_at_once(faulty: FaultyRegistry) -> None:
    with client(faulty.host) as registry:
        assert read_all(registry) == total(faulty)
    assert len([each for each in faulty.requests if "/blobs/" in each]) > len(SIZES)


@pytest.mark.parametrize("memory", [1 << 20, 6 << 20])
def test_a_small_budget_of_memory_locks_nothing_up(faulty: FaultyRegistry, memory: int) -> None:
    with client(faulty.host, memory=memory, connections=4) as registry:
        assert read_all(registry) == total(faulty)


def test_a_registry_that_ignores_ranges(faulty: FaultyRegistry) -> None:
    faulty.ignore_ranges = True
    with client(faulty.host) as registry:
        assert read_all(registry) == total(faulty)


def test_connections_that_are_cut_are_resumed(faulty: FaultyRegistry) -> None:
    faulty.cut_after = 700_000
    with client(faulty.host) as registry:
        assert read_all(registry) == total(faulty)


def test_too_many_requests_are_waited_for(faulty: FaultyRegistry) -> None:
    faulty.refusals = [429, 503, 500]
    with client(faulty.host) as registry:
        assert read_all(registry) == total(faulty)


def test_a_registry_that_never_recovers_is_an_error(faulty: FaultyRegistry) -> None:
    faulty.status = 503
    with client(faulty.host) as registry, pytest.raises(RegistryError, match="503"):
        registry.manifest("latest")


def test_wrong_bytes_are_found_at_the_end(faulty: FaultyRegistry) -> None:
    faulty.damage = lambda digest, raw: raw[:100] + bytes([raw[100] ^ 1]) + raw[101:] if len(raw) > 1_000_000 else raw
    with client(faulty.host) as registry, pytest.raises(CorruptImage):
        read_all(registry)


def test_leaving_a_layer_early_ends_all_threads(faulty: FaultyRegistry) -> None:
    with client(faulty.host) as registry:
        layers = layers_of(registry)
        registry.expect(layers)
        stream = registry.stream(layers[0])
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 120
    while [each for each in threading.enumerate() if each.name == "udi-fetch"]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_dead_mirror_is_passed_over(faulty: FaultyRegistry) -> None:
    with client(faulty.host, mirrors={faulty.host: ("http://127.0.0.1:9",)}) as registry:
        assert read_all(registry) == total(faulty)


def test_an_unknown_tag(faulty: FaultyRegistry) -> None:
    with client(faulty.host) as registry, pytest.raises(ImageNotFound, match="does not exist"):
        registry.manifest("nosuch")


Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def server() -> Iterator[Callable[[Answer], str]]:
    """``server(answer)`` starts one that answers every GET by ``answer(handler)``; returns ``host:port``."""
    running: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(made)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return f"127.0.0.1:{made.server_port}"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def test_credentials_do_not_follow_a_redirect_to_another_host(server: Callable[[Answer], str]) -> None:
    blob = b"the blob"
    descriptor = Descriptor(media_type=oci.layer_type(""), digest=oci.digest_of(blob), size=len(blob))
    seen: list[str | None] = []

    def storage(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        reply(handler, 200, blob)

    elsewhere = server(storage)

    def registry(handler: BaseHTTPRequestHandler) -> None:
        if not handler.headers.get("Authorization"):
            reply(handler, 401, WWW_Authenticate='Basic realm="here"')
        else:
            reply(handler, 307, Location=f"http://{elsewhere}/blob?signature=secret")

    with client(server(registry), credential=Credential(username="me", password="secret")) as opened:
        assert b"".join(opened.stream(descriptor)) == blob
    assert seen == [None]


def test_a_bearer_token_is_asked_for_and_renewed_when_it_expires(server: Callable[[Answer], str]) -> None:
    blob = os.urandom(3000)
    descriptor = Descriptor(media_type=oci.layer_type(""), digest=oci.digest_of(blob), size=len(blob))
    asked: list[str] = []

    def issuer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        reply(handler, 200, json.dumps({"token": f"token{len(asked)}"}).encode())

    realm = server(issuer)

    def registry(handler: BaseHTTPRequestHandler) -> None:
        # The first token serves for one request only.
        if handler.headers.get("Authorization") == f"Bearer token{max(1, len(asked))}" and len(served) < len(asked):
            served.append(handler.path)
            reply(handler, 200, blob)
        else:
            reply(handler, 401, WWW_Authenticate=f'Bearer realm="http://{realm}/token",service="s",scope="x"')

    served: list[str] = []
    with client(server(registry)) as opened:
        for _ in range(2):
            assert b"".join(opened.stream(descriptor)) == blob
    assert len(asked) == 2 and "service=s" in asked[0] and "scope=x" in asked[0]


def test_wrong_passwords_are_refused_without_showing_them(server: Callable[[Answer], str]) -> None:
    host = server(lambda handler: reply(handler, 401, WWW_Authenticate='Basic realm="here"'))
    secret = Credential(username="me", password="hunter2")
    with client(host, credential=secret) as registry, pytest.raises(AccessDenied) as caught:
        registry.manifest("latest")
    assert "hunter2" not in str(caught.value) and "udi login" in str(caught.value)


@pytest.mark.needs("docker-registry")
def test_a_real_registry_with_a_password(tmp_path: Path) -> None:
    bcrypt = pytest.importorskip("bcrypt")
    users = tmp_path / "htpasswd"
    users.write_text("me:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode() + "\n")
    auth = {"auth": {"htpasswd": {"realm": "test", "path": str(users)}}}
    with running_registry(configuration=auth) as registry:
        assert isinstance(registry, Registry)
        with client(registry.host, "x/y", credential=Credential(username="me", password="secret")) as opened:
            opened.ping()
        wrong = Credential(username="me", password="wrong")
        with client(registry.host, "x/y", credential=wrong) as opened, pytest.raises(AccessDenied):
            opened.ping()
