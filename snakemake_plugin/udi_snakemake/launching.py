"""``exec``, ``run`` and ``shell``: the front's process becomes a program in an image."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from udi_core import (
    Host,
    LaunchSpec,
    MountedImage,
    NodeMounts,
    UsageError,
    Volume,
    build,
    config_files,
    execute,
    is_rank,
)
from udi_snakemake import lock, ranks, warm
from udi_snakemake.accelerators import NVIDIA, PROGRAMS, ROCM, Vendor, shares
from udi_snakemake.arguments import Action
from udi_snakemake.environment import build as build_environment
from udi_snakemake.environment import injected, parse_env_file
from udi_snakemake.resolving import resolve

METADATA = "/.singularity.d"
_SUPPORT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "singularity.d")

# A SIF file keeps its environment in scripts that the real program runs before anything else.
_SOURCE_SCRIPTS = 'for script in /.singularity.d/env/*.sh; do [ -f "$script" ] && . "$script"; done; '


def launch(
    action: Action, question: warm.Question | None, began: float, again: Sequence[str], *, stands: bool = False
) -> int:
    """Become the program that ``action`` names, in its image, mounted and pulled as needed.

    With ``question`` the front can do the same again without us; ``began`` is when it was called; ``again`` is its own
    command line without the program.  With ``stands`` nothing is started: this process becomes a sandbox in which
    others start it.  Returns only where the program may start ranks: with its exit status.

    Raises:
        UdiError: anything that keeps the program from starting.
    """
    cwd = os.getcwd()
    if action.writable_tmpfs and not action.quiet:
        # Programs rarely write there although they ask for it; the ones that do fail at once, and this says why.
        print(
            "--writable-tmpfs: UDI's images stay read-only; show a directory instead: --bind DIR:/path", file=sys.stderr
        )
    resolved = resolve(action.image, cwd)
    # Without the caller's directories, the core puts empty ones in the place of home and /tmp.
    config = replace(resolved.config, automatic=()) if action.contain else resolved.config
    starts_ranks, rank = ranks.wanted(action, os.environ), is_rank(os.environ)
    mounted = NodeMounts(config).mount(resolved.image, ranks=starts_ranks)
    host = Host.observe(mounted, cwd=cwd)
    spec = specify(action, mounted, host, name=resolved.name, env_file=_read_env_file(action, cwd))
    if starts_ranks:
        if stands:
            raise UsageError("A program that may start ranks does not share its sandbox")
        return ranks.serve(spec, mounted, config, _seen(action, host), began, again)
    ready = build(spec, mounted, config, _seen(action, host))
    if stands:
        from udi_core import stand

        stand(ready, root=mounted.view, inputs=_inputs(action, cwd, host.environ))
    repeated = len(action.command) > 1 and not rank
    if question is not None and repeated and os.path.isfile(os.path.join(cwd, action.image)):
        warm.remember(
            question,
            argv=(ready.noted(warm.NOTES) if ready.record[0] else ready.argv)[:-1],
            env=ready.env,
            leases=mounted.fds,
            root=mounted.view,
            record=ready.record,
            inputs=_inputs(action, cwd, host.environ),
            environ=host.environ,
        )
    # As the front does it; but bubblewrap would give each rank a user namespace of its own.
    execute(ready, began, noted=not rank)


def _inputs(action: Action, cwd: str, environ: Mapping[str, str]) -> list[str]:
    """Every file by which a launch could come out differently the next time."""
    files = [os.path.join(cwd, action.image), *lock.places(cwd, environ), *config_files(environ)]
    return files if action.env_file is None else [*files, _absolute(action.env_file, cwd)]


def specify(
    action: Action, mounted: MountedImage, host: Host, *, name: str, env_file: Mapping[str, str] | None = None
) -> LaunchSpec:
    """What the core is asked to run.  Looks at the node and the image through ``host`` only."""
    environment = build_environment(
        action,
        host.environ,
        mounted.image.config.env,
        name=name,
        home=action.home[1] if action.home else host.environ.get("HOME", "/"),
        env_file=env_file,
    )
    env = environment.env
    is_sif = host.image.kind(METADATA) == "dir"
    drivers = [share for vendor in _vendors(action) for share in _driver(vendor, action.quiet)]
    if any(target.startswith(PROGRAMS + "/") for _, target in drivers):
        env["PATH"] = f"{env['PATH']}:{PROGRAMS}"
    command, entrypoint = _command(action, mounted, is_sif)
    if is_sif:
        asked = {**(env_file or {}), **injected(host.environ), **action.env}
        command = ("/bin/sh", "-c", _SOURCE_SCRIPTS + _exports(asked) + 'exec "$@"', "sh", *command)
    return LaunchSpec(
        command=command,
        entrypoint=entrypoint,
        volumes=_volumes(action, host),
        support=(*_metadata(is_sif, drivers), *_temporary(action, host)),
        env=env,
        clearenv=environment.clear,
        workdir=action.pwd or (_absolute(action.home[1], host.cwd) if action.contain and action.home else None),
        home=not (action.home or action.no_home or action.contain),
        by="snakemake",
        # A job that Snakemake kills must not go on in its image.
        die_with_parent=True,
    )


def _volumes(action: Action, host: Host) -> tuple[Volume, ...]:
    volumes = []
    if action.home:
        source, target = (_absolute(path, host.cwd) for path in action.home)
        # The core shows the working directory by itself, unless that would hide something of the image.
        if not (source == target == host.cwd) or action.contain or host.image.names(target):
            volumes.append(Volume(source=source, target=target))
    for bind in action.binds:
        source = _absolute(bind.source, host.cwd)
        target = source if bind.target == bind.source else bind.target
        if not target.startswith("/"):
            raise UsageError(f"The bind {bind.source}:{bind.target} has no absolute target", "", "--bind SRC:/DST")
        volumes.append(Volume(source=source, target=os.path.normpath(target), read_only=bind.read_only))
    return tuple(volumes)


def _absolute(path: str, cwd: str) -> str:
    return os.path.normpath(os.path.join(cwd, os.path.expanduser(path)))


def _metadata(is_sif: bool, drivers: list[tuple[str, str]]) -> tuple[Volume, ...]:
    """``/.singularity.d``, by which programs and Snakefiles tell that they are in a container."""
    shown = [Volume(source=source, target=target, read_only=True) for source, target in drivers]
    if is_sif:
        return tuple(shown)
    shown.append(Volume(source=f"{_SUPPORT}/runscript", target="/singularity", read_only=True))
    if not drivers:
        return (*shown, Volume(source=_SUPPORT, target=METADATA, read_only=True))
    # Nothing can be mounted inside a read-only directory that lacks the place for it: show its entries one by one.
    for entry in ("actions", "env", "labels.json", "runscript"):
        shown.append(Volume(source=f"{_SUPPORT}/{entry}", target=f"{METADATA}/{entry}", read_only=True))
    return tuple(shown)


def _temporary(action: Action, host: Host) -> tuple[Volume, ...]:
    """The host's /var/tmp, which the real program shows beside /tmp."""
    path = "/var/tmp"  # noqa: S108
    if action.contain or host.image.kind(path) != "dir" or host.node.kind(path) != "dir":
        return ()
    return (Volume(source=path, target=path),)


def _command(action: Action, mounted: MountedImage, is_sif: bool) -> tuple[tuple[str, ...], bool]:
    """The command, and whether the image's entrypoint comes before it."""
    if action.verb == "exec":
        return action.command, False
    if action.verb == "run":
        return ((f"{METADATA}/runscript", *action.command), False) if is_sif else (action.command, True)
    shell = action.shell or mounted.image.shell or "/bin/sh"
    return (shell, *(("--norc",) if shell.endswith("bash") else ()), *action.command), False


def _exports(env: Mapping[str, str]) -> str:
    return "".join("export " + name + "='" + value.replace("'", "'\\''") + "'; " for name, value in env.items())


def _seen(action: Action, host: Host) -> Host:
    """The node as the core may know it: unasked, it shows the working directory and those that variables name."""
    if action.contain:
        hidden, cwd = {"SCRATCH", "TMPDIR"}, "/"
    elif action.home:
        # Another takes its place.  An empty one in between would take what is written beside the working directory.
        hidden, cwd = {"HOME"}, host.cwd
    else:
        return host
    return replace(host, cwd=cwd, environ={key: value for key, value in host.environ.items() if key not in hidden})


def _read_env_file(action: Action, cwd: str) -> dict[str, str] | None:
    if action.env_file is None:
        return None
    path = _absolute(action.env_file, cwd)
    try:
        with open(path, encoding="utf-8") as file:
            return parse_env_file(file.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The environment file {path} cannot be read", str(error), "Check its name.") from error


def _vendors(action: Action) -> list[Vendor]:
    return [vendor for vendor, asked in ((NVIDIA, action.nv), (ROCM, action.rocm)) if asked]


def _driver(vendor: Vendor, quiet: bool) -> list[tuple[str, str]]:
    from udi_core import find_tool, run

    ldconfig = find_tool("ldconfig")
    cache = run([ldconfig, "-p"], check=False).stdout.decode(errors="replace") if ldconfig else ""
    found = shares(vendor, cache, find_tool)
    if not found and not quiet:
        # As the real program does: the same workflow runs on nodes with and without one.
        print(f"{vendor.flag}: this node has no such driver; going on without", file=sys.stderr)
    return found
