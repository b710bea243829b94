"""The sandbox: what a task asks for becomes one bubblewrap command line.

:func:`build` is pure: it looks at the image and the node only through a :class:`Host`, so every argv can be
tested as text.  :func:`execute` becomes the task.  The task stays in the caller's process tree: signals, exit
status, cgroup, standard streams and process group are its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol

from udi_core.errors import LaunchError
from udi_core.policy import check_volume
from udi_core.programs import require_program
from udi_core.volumes import Volume

if TYPE_CHECKING:
    from udi_core.config import Config
    from udi_core.mount import MountedImage

#: The PATH of images that set none: that of docker-run(1).
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Directories in which the image's files must win, so that the caller's cwd or $TMPDIR never covers them.
_IMAGE_OWNED = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
)

# Host variables that name files of the host for a loader or an interpreter: in the image they are wrong at best.
_SCRUBBED = frozenset(
    {
        "BASH_ENV",
        "ENV",
        "GCONV_PATH",
        "LOCPATH",
        "MANPATH",
        "NLSPATH",
        "PATH",
        "PERL5LIB",
        "PERL5OPT",
        "PERLLIB",
        "PYTHONEXECUTABLE",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONUSERBASE",
        "R_HOME",
        "R_LIBS",
        "R_LIBS_SITE",
        "R_LIBS_USER",
        "RUBYLIB",
        "RUBYOPT",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TCL_LIBRARY",
        "VIRTUAL_ENV",
    }
)
_SCRUBBED_PREFIXES = ("LD_", "BASH_FUNC_", "CONDA_", "_CE_", "_CONDA_")
# The caller's own, whatever the image says.
_IDENTITY = ("HOME", "LOGNAME", "USER")
_KEPT_WHEN_CLEARED = (*_IDENTITY, "TERM", "TMPDIR")
# Variables that act on the dynamic loader and the C library of every program, bwrap itself included.
_LOADER_PREFIXES = ("LD_", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "MALLOC_")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What a caller wants to run, and how.

    Attributes:
        command: program and arguments; may be empty only with an entrypoint, or where the image has a command.
        volumes: mounted above those of the site and the defaults.
        env: above the image's and ``env_file``'s.
        env_file: variables from files, above the image's.
        clearenv: drop the host's environment, except for HOME, LOGNAME, TERM, TMPDIR and USER.
        workdir: directory in the image's view; None for the caller's, the image's, or ``/``.
        entrypoint: False ignores the image's, True uses it, a text takes its place.
        home: show the caller's home directory.
        new_session: a session of its own, so that the task cannot type into the caller's terminal.
        die_with_parent: SIGKILL for the task when the caller's process dies.
        support: further read-only mounts that an adapter needs, not subject to the volume policy.
    """

    command: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    env_file: Mapping[str, str] = field(default_factory=dict)
    clearenv: bool = False
    workdir: str | None = None
    entrypoint: bool | str = False
    home: bool = True
    new_session: bool = False
    die_with_parent: bool = False
    support: tuple[Volume, ...] = ()


class Tree(Protocol):
    """A file tree that can be looked at: an image, or the node."""

    def kind(self, path: str) -> str:
        """``"dir"``, ``"link"``, ``"file"`` (anything else), or ``""`` where nothing is or nothing can be seen."""

    def readlink(self, path: str) -> str:
        """Where a symbolic link points."""

    def names(self, path: str) -> tuple[str, ...]:
        """Names in a directory, sorted; none where it cannot be read."""


class DiskTree:
    """The files below a directory, as they are when first looked at."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")

    def kind(self, path: str) -> str:
        """See :class:`Tree`."""
        try:
            mode = os.lstat(self._root + path).st_mode & 0o170000
        except OSError:
            return ""
        return {0o040000: "dir", 0o120000: "link"}.get(mode, "file")

    def readlink(self, path: str) -> str:
        """See :class:`Tree`."""
        return os.readlink(self._root + path)

    def names(self, path: str) -> tuple[str, ...]:
        """See :class:`Tree`."""
        try:
            return tuple(sorted(os.listdir(self._root + path)))
        except OSError:
            return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Everything that :func:`build` may know about the caller and the node.

    Attributes:
        image: the image's files.
        node: the node's files.
        bwrap: path of bubblewrap.
    """

    image: Tree
    node: Tree
    cwd: str
    uid: int
    environ: Mapping[str, str]
    bwrap: str

    @classmethod
    def observe(
        cls, mounted: MountedImage, *, environ: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Host:
        """The calling process, on this node.

        Raises:
            ToolMissing: bubblewrap is not installed.
            LaunchError: the current directory is gone.
        """
        if cwd is None:
            try:
                cwd = os.getcwd()
            except FileNotFoundError as error:
                raise LaunchError("The current directory does not exist any more", "", "cd to another one.") from error
        return cls(
            image=DiskTree(mounted.view),
            node=DiskTree("/"),
            cwd=cwd,
            uid=os.geteuid(),
            environ=dict(os.environ if environ is None else environ),
            bwrap=require_program("bwrap", reason="run programs in an image", package="bubblewrap"),
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """A task that is ready to start.

    Attributes:
        argv: ``argv[0]`` is an absolute path.
        env: the whole environment.
        pass_fds: descriptors that the started process must inherit.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    pass_fds: tuple[int, ...]


def build(spec: LaunchSpec, mounted: MountedImage, config: Config, host: Host) -> Launch:
    """The command line that runs ``spec`` in the image.  Pure: the same arguments give the same text.

    Raises:
        LaunchError: a volume's source or the work directory does not exist, or there is nothing to run.
    """
    env, loader = environment(spec, mounted, config, host)
    volumes = _volumes(spec, config, host)
    argv = [*mounted.join, host.bwrap]
    if host.uid == 0:
        argv += ("--cap-drop", "ALL")
    if spec.new_session:
        argv.append("--new-session")
    if spec.die_with_parent:
        argv.append("--die-with-parent")
    argv += _mounts(volumes, mounted, host)
    for name, value in loader.items():
        argv += ("--setenv", name, value)
    argv += ("--chdir", _workdir(spec, mounted, volumes, host), "--", *_command(spec, mounted))
    return Launch(tuple(argv), env, mounted.fds)


def execute(launch: Launch) -> NoReturn:
    """Become the task: the process, its id and its open descriptors stay, its program changes.

    Raises:
        LaunchError: the kernel refused to start bubblewrap.
    """
    try:
        os.execve(launch.argv[0], launch.argv, launch.env)  # noqa: S606 -- becoming the task is the point
    except OSError as error:
        raise LaunchError(f"{launch.argv[0]} cannot be started", error.strerror or str(error)) from error


def environment(
    spec: LaunchSpec, mounted: MountedImage, config: Config, host: Host
) -> tuple[dict[str, str], dict[str, str]]:
    """The task's environment, in two parts: what bubblewrap inherits, and what only the task may see.

    Lowest first: host, image, ``env_file``, ``env``, site.  Host variables that name files of the host for a
    loader or an interpreter are left out, and PATH is the image's.
    """
    result = {"PATH": DEFAULT_PATH}
    for name, value in host.environ.items():
        if spec.clearenv:
            keep = name in _KEPT_WHEN_CLEARED
        else:
            keep = name not in _SCRUBBED and not name.startswith(_SCRUBBED_PREFIXES)
        if keep:
            result[name] = value
    image = mounted.image.config.env
    result.update((name, value) for name, value in image.items() if name not in _IDENTITY or name not in result)
    for layer in (spec.env_file, spec.env, config.env):
        result.update(layer)
    loader = {name: result.pop(name) for name in list(result) if name.startswith(_LOADER_PREFIXES)}
    return result, loader


def _volumes(spec: LaunchSpec, config: Config, host: Host) -> dict[str, Volume]:
    """Everything of the host that the task sees, by resolved target; parents come before what lies in them."""
    chosen: dict[str, Volume] = {}

    def covered(path: str) -> bool:
        return any(path == each or path.startswith(each + "/") for each in chosen)

    own = [host.environ.get("HOME", "") if spec.home else "", "/tmp"]  # noqa: S108
    own += [host.environ.get("SCRATCH", ""), host.environ.get("TMPDIR", ""), host.cwd]
    for path in own:
        if not path.startswith("/") or path == "/":
            continue
        path = os.path.normpath(path)
        owned = any(path == each or path.startswith(each + "/") for each in _IMAGE_OWNED)
        if owned or covered(path) or host.node.kind(path) not in ("dir", "link"):
            continue
        if path == host.cwd and host.image.names(path):
            continue  # the image has something there, and what an image has is not hidden unasked
        chosen[path] = Volume(source=path, target=path)
    asked = [Volume.parse(text) for text in config.volumes]
    for volume in spec.volumes:
        check_volume(config.policy, volume)
    for volume in (*asked, *spec.volumes, *spec.support):
        if not host.node.kind(volume.source):
            raise LaunchError(
                f"The volume {volume} cannot be mounted",
                f"{volume.source} does not exist, or you may not see it.",
                "Make it first, or correct the path.",
            )
        chosen.pop(volume.target, None)
        chosen[volume.target] = volume
    resolved = {resolve(host.image, target): volume for target, volume in chosen.items()}
    return dict(sorted(resolved.items(), key=lambda item: item[0].split("/")))


def _mounts(volumes: dict[str, Volume], mounted: MountedImage, host: Host) -> Iterator[str]:
    """bubblewrap's mount options, parents first."""
    system = {
        "/dev": ("--dev-bind", "/dev"),
        "/proc": ("--bind", "/proc"),
        "/sys": ("--bind", "/sys"),
        "/etc": ("--ro-bind", mounted.etc_dir),
    }
    targets: dict[str, tuple[str, str]] = dict(system)
    for target, volume in volumes.items():
        targets[target] = ("--ro-bind" if volume.read_only else "--bind", volume.source)
    split: set[str] = set()
    yield from _directory("/", targets, mounted.root, host.image, split)
    made: list[str] = []
    for target in sorted(targets, key=lambda path: path.split("/")):
        option, source = targets[target]
        inside = any(target.startswith(each + "/") for each in made)
        if not inside:
            yield from _open_up(target, targets, mounted.root, host.image, split)
        yield from (option, source, target)
        made.append(target)
    for path in sorted(split, reverse=True):
        yield from ("--remount-ro", path)


def _open_up(
    target: str, targets: Mapping[str, tuple[str, str]], root: str, image: Tree, split: set[str]
) -> Iterator[str]:
    """Replace the directories of the image in which a mount point is missing by ones where it can be made."""
    parts = target.strip("/").split("/")
    for depth in range(1, len(parts)):
        parent, child = "/" + "/".join(parts[:depth]), "/" + "/".join(parts[: depth + 1])
        if image.kind(parent) != "dir":
            return  # bubblewrap makes the rest, below a directory that was split
        if not image.kind(child) and parent not in split:
            yield from _directory(parent, targets, root, image, split)


def _directory(
    path: str, targets: Mapping[str, tuple[str, str]], root: str, image: Tree, split: set[str]
) -> Iterator[str]:
    """Show a directory of the image: as it is where no mount point is missing in it, else entry by entry."""
    prefix = path.rstrip("/") + "/"
    needed = {target[len(prefix) :].partition("/")[0] for target in targets if target.startswith(prefix)}
    if all(image.kind(prefix + name) in ("dir", "file") for name in needed):
        if path == "/":
            yield from ("--ro-bind", root, "/")
        return
    split.add(path)
    if path != "/":
        yield from ("--tmpfs", path)
    for name in image.names(path):
        child = prefix + name
        if child in targets:
            continue
        if image.kind(child) == "link":
            yield from ("--symlink", image.readlink(child), child)
        else:
            yield from ("--ro-bind", root + child, child)


def resolve(image: Tree, path: str) -> str:
    """Follow the image's symbolic links, within the image, as far as the path exists.

    Raises:
        LaunchError: the links form a loop.
    """
    rest, done = path.strip("/").split("/")[::-1], ""
    for _ in range(400):
        if not rest:
            return done or "/"
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        here = f"{done}/{part}"
        if image.kind(here) != "link":
            done = here
            continue
        link = image.readlink(here)
        if link.startswith("/"):
            done = ""
        rest += link.split("/")[::-1]
    raise LaunchError(f"{path} cannot be reached in the image", "Its symbolic links form a loop.")


def _workdir(spec: LaunchSpec, mounted: MountedImage, volumes: Mapping[str, Volume], host: Host) -> str:
    def exists(path: str) -> bool:
        path = resolve(host.image, path)
        for target in sorted(volumes, key=len, reverse=True):
            if path == target or path.startswith(target + "/"):
                return host.node.kind(volumes[target].source + path[len(target) :]) in ("dir", "link")
        return host.image.kind(path) == "dir" or path == "/"

    if spec.workdir is not None:
        if not exists(spec.workdir):
            raise LaunchError(
                f"The work directory {spec.workdir} does not exist in the image", "", "Mount it with a volume."
            )
        return spec.workdir
    for path in (host.cwd, mounted.image.config.workdir):
        if path.startswith("/") and exists(path):
            return path
    return "/"


def _command(spec: LaunchSpec, mounted: MountedImage) -> tuple[str, ...]:
    image = mounted.image.config
    if spec.entrypoint is False:
        command = spec.command
    elif spec.entrypoint is True:
        command = (*image.entrypoint, *(spec.command or image.cmd))
    else:
        command = (spec.entrypoint, *spec.command)
    if not command:
        raise LaunchError("There is no command to run", "None was given.", "Write it after the image reference.")
    return command
