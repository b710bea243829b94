"""A registry that speaks the distribution protocol and fails in a chosen way: what no real one does on demand."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support import oci

#: Changes a blob's bytes on their way; gets the blob's digest and its bytes.
Damage = Callable[[str, bytes], bytes]


@dataclass(slots=True)
class FaultyRegistry:
    """What the server does, and what it saw.

    Attributes:
        damage: applied to every blob (not to manifests).
        cut_after: bytes of a blob after which the connection is closed, every time; 0 for never.
        stop_at: byte of a blob behind which nothing is ever sent: the connection is closed there; 0 for never.
        status: answer everything with this status; 0 for never.
        refusals: statuses of the next answers, before all is well.
        ignore_ranges: answer a request for a part of a blob with all of it.
        requests: method and path of every request.
    """

    host: str
    layout: oci.Layout
    damage: Damage | None = None
    cut_after: int = 0
    stop_at: int = 0
    status: int = 0
    refusals: list[int] = field(default_factory=list)
    ignore_ranges: bool = False
    requests: list[str] = field(default_factory=list)

    def reference(self, tag: str = "latest") -> str:
        return f"docker:{self.host}/faulty/image:{tag}"


@contextlib.contextmanager
def faulty_registry(directory: Path, tls: ssl.SSLContext | None = None) -> Iterator[FaultyRegistry]:
    """Serve a layout below ``directory`` (made if it is not there) on a loopback port; by HTTPS with ``tls``."""
    state: FaultyRegistry

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append(f"GET {self.path}")
            if state.status or state.refusals:
                self._answer(
                    state.status or state.refusals.pop(0),
                    b'{"errors":[{"code":"DENIED","message":"as told"}]}',
                    "application/json",
                )
                return
            if self.path == "/v2/":
                self._answer(200, b"{}", "application/json")
                return
            kind, _, name = self.path.removeprefix("/v2/faulty/image/").partition("/")
            try:
                if kind == "manifests":
                    found = state.layout.find(name) if ":" not in name else {"digest": name, "mediaType": ""}
                    raw = state.layout.blob_path(found["digest"]).read_bytes()
                    media = found.get("mediaType") or oci.OCI_MANIFEST
                    self._answer(200, raw, media)
                else:
                    raw = state.layout.blob_path(name).read_bytes()
                    self._blob(name, state.damage(name, raw) if state.damage else raw)
            except (LookupError, OSError):
                self._answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such"}]}', "application/json")

        def _blob(self, name: str, raw: bytes) -> None:
            start = 0
            wanted = self.headers.get("Range", "")
            if wanted and not state.ignore_ranges:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start = int(first)
                end = min(int(last) + 1 if last else len(raw), len(raw))
                body, total = raw[start:end], len(raw)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
            else:
                body = raw
                self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = state.cut_after if state.cut_after and len(body) > state.cut_after else None
            if state.stop_at and start + len(body) > state.stop_at:
                cut = max(0, state.stop_at - start)
            if cut is not None:
                self.wfile.write(body[:cut])
                self.wfile.flush()
                self.connection.close()
                self.close_connection = True
                return
            self.wfile.write(body)

        def _answer(self, status: int, body: bytes, media_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            # In the connection's own thread: a handshake must not keep others waiting.
            with contextlib.suppress(OSError):
                super().finish_request(tls.wrap_socket(request, server_side=True) if tls else request, client_address)

    with Server(("127.0.0.1", 0), Handler) as server:
        state = FaultyRegistry(host=f"127.0.0.1:{server.server_port}", layout=oci.Layout(directory))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
