"""Bodies of small documents, from servers that send what nobody asked for."""

from __future__ import annotations

import gzip
import io
import zlib

import pytest
import requests
import urllib3

from udi_core.errors import ConfigError
from udi_core.web import BROKEN, Web, body


def response(data: bytes, coding: str = "") -> requests.Response:
    made = requests.Response()
    made.raw = urllib3.HTTPResponse(io.BytesIO(data), preload_content=False)
    if coding:
        made.headers["Content-Encoding"] = coding
        made.raw.headers["Content-Encoding"] = coding
    return made


@pytest.mark.parametrize(
    ("data", "coding"), [(b"text", ""), (gzip.compress(b"text"), "gzip"), (zlib.compress(b"text"), "Deflate")]
)
def test_a_body_is_decompressed(data: bytes, coding: str) -> None:
    assert body(response(data, coding), 100) == b"text"


def test_a_few_bytes_that_stand_for_many_stay_few() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) > 40_000
    assert body(response(bomb, "gzip"), 40_000) == bytes(40_001)
    assert len(body(response(bytes(5000)), 1000)) == 1001


def test_what_cannot_be_decompressed_is_broken() -> None:
    with pytest.raises(BROKEN, match="decompressed"):
        body(response(b"no gzip", "gzip"), 100)


def test_a_bundle_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent.pem")
    with pytest.raises(ConfigError, match=r"/nonexistent\.pem"):
        Web().send("GET", "https://registry.invalid/v2/")


@pytest.mark.parametrize(
    ("url", "sender", "right"),
    [
        ("https://cdn.example/blob", "https://ghcr.io", True),
        ("http://cdn.example/blob", "https://ghcr.io", False),
        ("http://plain.example:5000/blob", "https://ghcr.io", True),
        ("file:///etc/passwd", "https://ghcr.io", False),
        ("//ghcr.io", "https://ghcr.io", False),
        ("http://127.0.0.1:5000/blob", "http://localhost:5001", True),
        ("http://127.0.0.1:8080/admin", "https://ghcr.io", False),
        ("https://[::1]/admin", "https://ghcr.io", False),
    ],
)
def test_where_a_registry_may_send_us(url: str, sender: str, right: bool) -> None:
    assert Web(insecure=("plain.example:5000",)).allowed(url, sender) == right
