"""A real registry (Debian's ``docker-registry``) on a loopback port, and a small pusher for OCI layouts."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.support.oci import Descriptor, Layout, children
from tests.support.tools import free_port
from udi_core import _process

TOOLS = ("docker-registry",)
_MANIFEST_MARKS = ("manifest", "image.index")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A running registry.

    Attributes:
        host: ``127.0.0.1:PORT``, the registry part of references to it.
        storage: directory where the registry keeps its blobs; tests may damage them.
        log: its log file.
    """

    host: str
    storage: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def push(self, layout: Layout | Path, repository: str, tag: str = "latest", *, source: str | None = None) -> str:
        """Push a manifest or index, with all that it points to; returns the reference ``docker:host/repository:tag``.

        Args:
            layout: an OCI layout.
            source: the manifest's name in the layout; None takes the only one.
        """
        if not isinstance(layout, Layout):
            layout = Layout(layout)
        with requests.Session() as session:
            session.trust_env = False  # a proxy has no business with the loopback address
            self._push(session, layout, layout.find(source), repository, tag)
        return f"docker:{self.host}/{repository}:{tag}"

    def blob_path(self, digest: str) -> Path:
        """The file in which the registry keeps a blob or manifest."""
        algorithm, _, encoded = digest.partition(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / encoded[:2] / encoded / "data"

    def _push(
        self, session: requests.Session, layout: Layout, descriptor: Descriptor, repository: str, name: str
    ) -> None:
        for child in children(layout.read(descriptor)):
            if any(mark in child["mediaType"] for mark in _MANIFEST_MARKS):
                self._push(session, layout, child, repository, child["digest"])
            else:
                self._push_blob(session, layout, child, repository)
        _checked(
            session.put(
                f"{self.url}/v2/{repository}/manifests/{name}",
                data=layout.blob_path(descriptor["digest"]).read_bytes(),
                headers={"Content-Type": descriptor["mediaType"]},
                timeout=60,
            )
        )

    def _push_blob(self, session: requests.Session, layout: Layout, blob: Descriptor, repository: str) -> None:
        base = f"{self.url}/v2/{repository}/blobs"
        if session.head(f"{base}/{blob['digest']}", timeout=60).ok:
            return
        where = _checked(session.post(f"{base}/uploads/", timeout=60)).headers["Location"]
        with layout.blob_path(blob["digest"]).open("rb") as file:
            _checked(
                session.put(
                    where,
                    params={"digest": blob["digest"]},
                    data=file if blob["size"] else b"",
                    headers={"Content-Type": "application/octet-stream"},
                    timeout=600,
                )
            )


@contextlib.contextmanager
def running_registry(
    storage: Path | None = None, *, configuration: Mapping[str, Any] | None = None
) -> Iterator[Registry]:
    """Run a registry for the length of the ``with`` block; nothing is left running, and no temporary file.

    Args:
        storage: an existing directory to keep blobs in; by default a temporary one.
        configuration: top-level keys merged over the registry's configuration (``{"auth": …}``); those of ``http``
            are added to the address (``{"http": {"tls": …}}``).

    Raises:
        ToolMissing: ``docker-registry`` is not installed.
        RuntimeError: it did not come up; the message holds its log.
    """
    program = _process.require_tool("docker-registry", reason="serve images on a loopback port")
    with tempfile.TemporaryDirectory(prefix="udi-registry-") as temporary:
        storage = storage or Path(temporary) / "storage"
        log = Path(temporary) / "registry.log"
        for attempt in range(5):
            port = free_port()
            process = _start(program, Path(temporary), storage, port, configuration or {}, log)
            try:
                if _answers(process, port):
                    yield Registry(host=f"127.0.0.1:{port}", storage=storage, log=log)
                    return
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if attempt == 4 or "address already in use" not in log.read_text():
                raise RuntimeError(f"docker-registry did not come up:\n{log.read_text()}")


def _start(
    program: str, directory: Path, storage: Path, port: int, more: Mapping[str, Any], log: Path
) -> subprocess.Popen[bytes]:
    configuration = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        **more,
        "http": {"addr": f"127.0.0.1:{port}", **more.get("http", {})},
    }
    path = directory / "config.yml"
    path.write_text(json.dumps(configuration))  # JSON is YAML
    with log.open("wb") as output:
        return subprocess.Popen(
            [program, "serve", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers(process: subprocess.Popen[bytes], port: int, timeout: float = 20) -> bool:
    deadline = time.monotonic() + timeout
    with requests.Session() as session:
        session.trust_env = False
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(requests.ConnectionError):
                session.get(f"http://127.0.0.1:{port}/v2/", timeout=5)
                return process.poll() is None
            time.sleep(0.02)
    return False


def _checked(response: requests.Response) -> requests.Response:
    if not response.ok:
        raise RuntimeError(f"{response.request.method} {response.url}: {response.status_code} {response.text}")
    return response
