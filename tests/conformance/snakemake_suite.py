"""Snakemake's own tests of containers, from the source of the installed version, through UDI's front.

The images that they name on Docker Hub are mapped to a loopback registry; the one page of the web that they read, to a
loopback server.  Left out are tests that need conda or cwltool.  Run by scripts/snakemake-conformance.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from udi_snakemake.activation import front_directory

from tests.support import images, oci, workflows
from tests.support.registry import running_registry

TESTS = (
    *("container", "dynamic_container", "github_issue78", "issue1083", "issue3361_fail", "issue3361_pass"),
    *("issue3958", "module_global_container", "shell_exec_singularity", "singularity", "singularity_cluster"),
    *("singularity_global", "singularity_invalid", "singularity_module_invalid", "singularity_none"),
    "singularity_source_cache",
)
PAGE = b"<HEADER>\n<TITLE>The World Wide Web project</TITLE>\n"
WORK = Path(__file__).resolve().parents[2] / ".cache" / "conformance"


def source() -> Path:
    """Snakemake's source distribution, unpacked."""
    name = f"snakemake-{version('snakemake')}"
    if not (WORK / name).is_dir():
        options = ["--quiet", "--no-deps", "--no-binary=snakemake", f"--dest={WORK}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, name.replace("-", "==")], check=True)
        with tempfile.TemporaryDirectory(dir=WORK) as temporary:
            subprocess.run(["tar", "-xzf", WORK / f"{name}.tar.gz", "-C", temporary], check=True)
            (Path(temporary) / name).rename(WORK / name)
    return WORK / name


def plugins() -> Path:
    """The executor plugin that one of the tests wants, in a directory of its own."""
    target = WORK / "plugins"
    if not target.is_dir():
        options = ["--quiet", "--no-deps", f"--target={target}", "snakemake-executor-plugin-cluster-generic"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True)
    return target


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(PAGE)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def proxy() -> Iterator[str]:
    """A proxy that answers every question with the page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def main() -> int:
    WORK.mkdir(parents=True, exist_ok=True)
    # One of the rules shows what is mounted; Debian's program for it needs half of a system.
    mount = oci.Layer.of(oci.file("usr/local/bin/mount", "#!/bin/sh\nexec cat /proc/mounts\n", 0o755))
    with (
        running_registry() as registry,
        workflows.environment() as env,
        proxy() as page,
        tempfile.TemporaryDirectory() as temporary,
    ):
        base = images.derive(images.image("base"), Path(temporary) / "base", [*workflows.workflow_layers(), mount])
        tiny = images.image("tiny")
        for name, tag in (("bash", "latest"), ("bash", "5.3.3"), ("python", "3.9"), ("ubuntu", "24.04")):
            registry.push(base, f"library/{name}", tag)
        for name, tag in (("alpine", "latest"), ("busybox", "1.33")):
            registry.push(tiny, f"library/{name}", tag)
        config = Path(temporary) / "config.yaml"
        config.write_text(f"mirrors:\n  docker.io: ['http://{registry.host}']\n")
        options = ["-rA", "--tb=short", "--show-capture=no", "-p", "no:cacheprovider", "-W", "ignore", "-c", os.devnull]
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                *options,
                "--rootdir=.",
                *(f"tests/tests.py::test_{each}" for each in TESTS),
            ],
            cwd=source(),
            env={
                **env,
                "CI": "true",  # they take it for a word that there is a network
                "PATH": f"{front_directory()}:{env['PATH']}",
                "PYTHONPATH": str(plugins()),
                "UDI_CONFIG": str(config),
                "UDI_SNAKEMAKE": "1",
                "http_proxy": page,
                "no_proxy": "127.0.0.1",
            },
            stdin=subprocess.DEVNULL,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
