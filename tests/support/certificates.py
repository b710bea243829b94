"""A certificate authority of one's own, and a server's certificate of it, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("openssl",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """PEM files: the authority's certificate, and certificate and key of one server."""

    ca: Path
    certificate: Path
    key: Path


def make(directory: Path, *names: str) -> Authority:
    """Make an authority in ``directory``, and by it a certificate for a server of these names (``DNS:x``, ``IP:y``)."""
    directory.mkdir(exist_ok=True)

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=Test authority")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=registry")
    (directory / "names").write_text(f"subjectAltName={','.join(names)}\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "30")
    openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")
    return Authority(ca=directory / "ca.pem", certificate=directory / "server.pem", key=directory / "server.key")
