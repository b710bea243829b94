"""Look a machine over: what is there, what is missing, and how to get it.

Nothing is changed; every mount backend is really tried, on a tiny image of UDI's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from udi_core import _process
from udi_core.backends.probe import probe
from udi_core.become import forbidding_sysctl
from udi_core.config import Config, config_files
from udi_core.credentials import Credentials
from udi_core.errors import UdiError
from udi_core.node_files import check_directory
from udi_core.squashfs import writer_program
from udi_core.store import ImageStore

Level = Literal["ok", "note", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "ok"; "note" for what something else makes up for; "missing" for what must be mended.
        what: the thing.
        found: what is the case.
        hint: what to do; "" if nothing.
    """

    level: Level
    what: str
    found: str
    hint: str = ""


def examine(config: Config) -> list[Finding]:
    """All findings, in the order in which a person would want to read them."""
    return [
        _configuration(),
        *_tools(),
        _kernel(),
        _sandbox(),
        _node_directory(config),
        *_backends(config),
        _store(config),
        *_registries(config),
        *_frameworks(),
    ]


def _configuration() -> Finding:
    files = [path for path in config_files(os.environ) if os.path.exists(path)]
    return Finding(level="ok", what="configuration", found=", ".join(files) or "defaults; there is no file")


def _sandbox() -> Finding:
    """Whether bubblewrap can do here what tasks ask of it: AppArmor may forbid what the kernel offers."""
    program = _process.find_tool("bwrap")
    if not program:
        return Finding(level="missing", what="sandbox", found="bwrap is not installed")
    argv = [program, "--ro-bind", "/", "/", "--tmpfs", "/mnt", "--dev-bind", "/dev", "/dev", "true"]
    tried = _process.run(argv, check=False, timeout=60)
    if tried.returncode == 0:
        return Finding(level="ok", what="sandbox", found="works")
    hint = "Ask an administrator to let bwrap make user namespaces (on Ubuntu, an AppArmor profile for it)."
    said = tried.stderr.decode(errors="replace").strip()[:200] or f"status {tried.returncode}"
    return Finding(level="missing", what="sandbox", found=said, hint=hint)


def _registries(config: Config) -> Iterator[Finding]:
    """Files that pulling reads: what is wrong with them shows only when a private image is wanted."""
    if config.ca_file and not os.access(config.ca_file, os.R_OK):
        origin = config.origins.get("ca_file", "")
        yield Finding(
            level="missing", what="CA file", found=f"{config.ca_file} cannot be read", hint=f"It is set by {origin}."
        )
    credentials = Credentials(config.auth_file)
    try:
        credentials.find("docker.io")
        there = [path for path in credentials.files() if os.path.exists(path)]
        yield Finding(level="ok", what="passwords", found=", ".join(there) or "none are kept; see udi login")
    except UdiError as error:
        yield Finding(level="missing", what="passwords", found=error.brief, hint=error.hint)


def _tools() -> Iterator[Finding]:
    yield _tool("bwrap", "runs every task")
    try:
        yield Finding(level="ok", what="squashfs writer", found=writer_program()[1])
    except UdiError as error:
        yield Finding(level="missing", what="squashfs writer", found=error.brief, hint=error.hint)
    for name, purpose in (
        ("squashfuse_ll", "mounts images for users without root"),
        ("fusermount3", "lets squashfuse mount without a user namespace"),
        ("nsenter", "lets tasks join a mount in a user namespace"),
        ("unsquashfs", "extracts images where nothing can be mounted"),
    ):
        yield _tool(name, purpose, optional=True)


def _tool(name: str, purpose: str, *, optional: bool = False) -> Finding:
    path = _process.find_tool(name)
    if path:
        return Finding(level="ok", what=name, found=path)
    package = _process.PACKAGES.get(name, name)
    hint = f"apt-get install {package}   (conda-forge: {package})"
    return Finding(level="note" if optional else "missing", what=name, found=f"not installed; it {purpose}", hint=hint)


def _kernel() -> Finding:
    """Whether ordinary users may make user namespaces, without which bubblewrap needs to be setuid."""
    name, bad = forbidding_sysctl()
    if name:
        return Finding(
            level="missing" if os.getuid() else "note",
            what="user namespaces",
            found=f"not for ordinary users: {name} = {bad}",
            hint=f"Ask an administrator for: sysctl {name}={int(bad == '0')}",
        )
    return Finding(level="ok", what="user namespaces", found="available")


def _backends(config: Config) -> Iterator[Finding]:
    there = os.path.isdir(config.node_dir)
    try:
        verdicts = list(probe(config))
    except (UdiError, OSError) as error:
        why = error.brief if isinstance(error, UdiError) else str(error)
        yield Finding(level="missing", what="mounts", found=f"could not be tried: {why}")
        return
    if not there:
        with contextlib.suppress(OSError):  # a task may have begun to use it meanwhile
            os.rmdir(config.node_dir)
    works = any(not each.reason for each in verdicts)
    chosen = False
    for each in verdicts:
        if not each.reason:
            found = "works" if chosen else "works; tasks on this node use it"
            chosen = True
            yield Finding(level="ok", what=f"mount by {each.name}", found=found)
        else:
            level: Level = "note" if works else "missing"
            yield Finding(level=level, what=f"mount by {each.name}", found=each.reason, hint=each.hint)


def _store(config: Config) -> Finding:
    store = ImageStore(config.store)
    existing = config.store
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.R_OK | os.X_OK):
        return Finding(
            level="missing",
            what="store",
            found=f"{config.store} cannot be read",
            hint="Set UDI_STORE to a directory of your own, or ask the owner of this one.",
        )
    if not os.access(existing, os.W_OK):
        return Finding(
            level="note",
            what="store",
            found=f"{config.store} cannot be written; its images can be run",
            hint="Set UDI_STORE to a directory of your own to pull images.",
        )
    try:
        count = sum(1 for _ in store.images())
    except UdiError as error:
        return Finding(level="missing", what="store", found=error.details, hint=error.hint)
    level: Level = "note" if free < 2 << 30 else "ok"
    hint = "Make room: udi gc" if level == "note" else ""
    found = f"{config.store}: {count} images, {free / 1e9:.0f} GB free ({config.origins.get('store', '')})"
    return Finding(level=level, what="store", found=found, hint=hint)


def _node_directory(config: Config) -> Finding:
    if os.path.lexists(config.node_dir):
        try:
            check_directory(config.node_dir, for_all=os.geteuid() == 0 and config.node_dir == config.shared_node_dir)
        except UdiError as error:
            found = f"{error.brief}: {error.details}"
            return Finding(level="missing", what="node directory", found=found, hint=error.hint)
    return Finding(level="ok", what="node directory", found=f"{config.node_dir} ({config.origins.get('node_dir', '')})")


def _frameworks() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    for name, extra in (("parsl", "parsl"), ("snakemake", "snakemake"), ("jupyter_client", "jupyter")):
        try:
            yield Finding(level="ok", what=name, found=version(name))
        except PackageNotFoundError:
            yield Finding(
                level="note", what=name, found="not installed", hint=f"To use it: pip install 'udi-workflows[{extra}]'"
            )
