"""A forwarding proxy: CONNECT for HTTPS, absolute URLs for plain HTTP (RFC 9110, 9.3.6; RFC 9112, 3.2.2)."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Proxy:
    """What the proxy does, and what it saw.

    Attributes:
        url: for ``https_proxy`` and ``http_proxy``, without a password.
        hosts: where names lead to; no other name exists.
        password: ``user:password`` that is wanted; "" for none.
        requests: the first line of every request that it served.
    """

    url: str
    hosts: Mapping[str, tuple[str, int]]
    password: str = ""
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def forwarding_proxy(hosts: Mapping[str, tuple[str, int]]) -> Iterator[Proxy]:
    """Serve on a loopback port; ``hosts`` maps ``name:port`` to addresses."""
    proxy: Proxy

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline().decode("latin-1").strip()
            headers = []
            while (header := self.rfile.readline().decode("latin-1").strip()) != "":
                headers.append(header)
            wanted = "Basic " + base64.b64encode(proxy.password.encode()).decode()
            if proxy.password and f"proxy-authorization: {wanted}".lower() not in map(str.lower, headers):
                self._answer("407 Proxy Authentication Required")
                return
            method, target, version = line.split(" ")
            plain = target.startswith("http://")
            host, _, path = target.removeprefix("http://").partition("/")
            place = proxy.hosts.get(host if ":" in host else f"{host}:80")
            if place is None:
                self._answer("502 Bad Gateway")
                return
            proxy.requests.append(line)
            with socket.create_connection(place, timeout=60) as upstream:
                if plain:
                    kept = [each for each in headers if not each.lower().startswith(("proxy-", "connection:"))]
                    text = "\r\n".join([f"{method} /{path} {version}", *kept, "Connection: close", "", ""])
                    upstream.sendall(text.encode("latin-1"))
                else:
                    self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._tunnel(upstream)

        def _answer(self, status: str) -> None:
            self.wfile.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        def _tunnel(self, upstream: socket.socket) -> None:
            ends = {self.connection: upstream, upstream: self.connection}
            while True:
                for each in select.select(list(ends), [], [])[0]:
                    try:
                        data = each.recv(65536)
                        if not data:
                            return
                        ends[each].sendall(data)
                    except OSError:
                        return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy = Proxy(url=f"http://127.0.0.1:{server.server_address[1]}", hosts=hosts)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
