"""The sandbox: what a task asks for becomes one bubblewrap command line.

:func:`build` is pure: it looks at the image and the node only through a :class:`Host`, so every argv can be
tested as text.  :func:`execute` becomes the task.  The task stays in the caller's process tree: signals, exit
status, cgroup, standard streams and process group are its own.
"""

from __future__ import annotations

import os
import time

from udi_core import record, task_files
from udi_core.errors import ConfigError, LaunchError
from udi_core.layout import Mount, Plan, place, steps
from udi_core.mpi import APART, SERVER_DIRECTORY, is_rank
from udi_core.policy import check_source, check_target, denied_source, denied_target
from udi_core.programs import check_command, require_program
from udi_core.tree import DiskTree, Tree, View, is_below, resolve
from udi_core.values import dataclass, field, replace
from udi_core.volumes import Volume

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

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

# Files of the kernel's settings, to which root may write without any capability.
_SETTINGS = tuple(f"/proc/{name}" for name in ("acpi", "bus", "fs", "irq", "scsi", "sys", "sysrq-trigger"))

# What configuration may name in ``automatic``.
_AUTOMATIC = ("home", "tmp", "scratch", "tmpdir", "cwd")

# Host variables by which a loader, an interpreter or a compiler finds files: in the image they are wrong at best.
_SCRUBBED = frozenset(
    {
        "BASH_ENV",
        "CLASSPATH",
        "CMAKE_PREFIX_PATH",
        "CPATH",
        "CPLUS_INCLUDE_PATH",
        "C_INCLUDE_PATH",
        "ENV",
        "GCONV_PATH",
        "GOROOT",
        "INFOPATH",
        "JAVA_HOME",
        "LIBRARY_PATH",
        "LOCPATH",
        "LUA_CPATH",
        "LUA_PATH",
        "MANPATH",
        "NLSPATH",
        "NODE_PATH",
        "OPAL_PREFIX",
        "PATH",
        "PERL5LIB",
        "PERL5OPT",
        "PERLLIB",
        "PKG_CONFIG_PATH",
        "PYTHONEXECUTABLE",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONUSERBASE",
        "RUBYLIB",
        "RUBYOPT",
        "R_HOME",
        "R_LIBS",
        "R_LIBS_SITE",
        "R_LIBS_USER",
        "TCLLIBPATH",
        "TCL_LIBRARY",
        "VIRTUAL_ENV",
    }
)
_SCRUBBED_PREFIXES = ("BASH_FUNC_", "CONDA_", "LD_", "_CE_", "_CONDA_", "__LMOD", "_LMFILES", "_ModuleTable")
# Host variables that name a file or a directory, and are dropped if the task cannot see it.
_IF_VISIBLE = frozenset(
    {
        "AWS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "NODE_EXTRA_CA_CERTS",
        "REQUESTS_CA_BUNDLE",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "XDG_RUNTIME_DIR",
    }
)
# Passwords of registries, by which images come; those who make images must not get them.
_SECRETS = frozenset({"UDI_PASSWORD", "APPTAINER_DOCKER_PASSWORD", "SINGULARITY_DOCKER_PASSWORD"})
# The caller's own, whatever the image says.
_IDENTITY = ("HOME", "LOGNAME", "USER")
_KEPT_WHEN_CLEARED = (*_IDENTITY, "TERM", "TMPDIR")
# Variables that act on the dynamic loader and the C library of every program, bwrap itself included.
_LOADER_PREFIXES = ("LD_", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "MALLOC_")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What a caller wants to run, and how.

    Attributes:
        command: program and arguments; may be empty only with an entrypoint.
        volumes: mounted above those of the site and the defaults.
        env: above the image's and ``env_file``'s.
        env_file: variables from files, above the image's.
        clearenv: drop the host's environment, except for HOME, LOGNAME, TERM, TMPDIR and USER.
        workdir: directory in the task's view; None for the caller's, else the image's, else ``/``.
        entrypoint: False ignores the image's, True uses it, a text takes its place.
        home: show the caller's home directory; else an empty one takes its place.
        new_session: a session of its own, so that the task cannot type into the caller's terminal.
        die_with_parent: SIGKILL for the task when the caller's process dies.
        support: further read-only mounts that an adapter needs, not subject to the volume policy.
        by: who asks, as the run record names it.
        environ: the host's environment; None for this process's.
        cwd: the caller's current directory; None for this process's.
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
    by: str = "run"
    environ: Mapping[str, str] | None = None
    cwd: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Everything that :func:`build` may know about the caller and the node.

    Attributes:
        image: the image's files.
        node: the node's files.
        bwrap: path of bubblewrap.
        is_admin: whether the caller has CAP_SYS_ADMIN; root in a container often lacks it.
    """

    image: Tree
    node: Tree
    cwd: str
    uid: int
    environ: Mapping[str, str]
    bwrap: str
    is_admin: bool = False

    @classmethod
    def observe(
        cls, mounted: MountedImage, *, environ: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Host:
        """The calling process, on this node; ``environ`` and ``cwd`` speak for another.

        Raises:
            ToolMissing: bubblewrap is not installed.
            LaunchError: the current directory is gone.
        """
        if cwd is None:
            try:
                cwd = os.getcwd()
            except FileNotFoundError as error:
                raise LaunchError(
                    "The current directory does not exist any more",
                    f"It was {os.environ.get('PWD') or 'removed'}.",
                    "cd to another one.",
                ) from error
        return cls(
            image=DiskTree(mounted.view),
            node=DiskTree("/"),
            cwd=cwd,
            uid=os.geteuid(),
            environ=dict(os.environ if environ is None else environ),
            bwrap=require_program("bwrap", reason="run programs in an image", package="bubblewrap"),
            is_admin=os.geteuid() == 0 and _is_admin(),
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """A task that is ready to start: by :func:`execute`, or by another process that starts ``argv``.

    Attributes:
        argv: ``argv[0]`` is an absolute path.
        env: the whole environment.
        pass_fds: descriptors that the started process must inherit.
        plan: how a process becomes the task without bubblewrap; None where it cannot.
        record: file of the run record, or ""; and the beginning of this task's line (:func:`udi_core.record.write`).
        options: index in ``argv`` of bubblewrap's first option.
        durations: whether the run record is to say how the task ends, at the price of a process that waits for it.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    pass_fds: tuple[int, ...]
    plan: Plan | None = None
    record: tuple[str, str] = ("", "")
    options: int = 1
    durations: bool = False

    def noted(self, fd: int) -> tuple[str, ...]:
        """``argv`` with which bubblewrap notes how the task ends, in a file that ``fd`` has open for writing."""
        return (*self.argv[: self.options], "--json-status-fd", str(fd), *self.argv[self.options :])


def _is_admin() -> bool:
    with open("/proc/self/status", "rb", buffering=0) as file:
        effective = file.read().partition(b"\nCapEff:\t")[2]
    return bool(int(effective[:16], 16) & 1 << 21)  # CAP_SYS_ADMIN


def build(spec: LaunchSpec, mounted: MountedImage, config: Config, host: Host) -> Launch:
    """The command line that runs ``spec`` in the image.  Pure: the same arguments give the same text.

    Raises:
        CommandNotFound, NotExecutable: the program is not there, or is no program; found before anything starts.
        LaunchError: a volume or the work directory does not exist, or there is nothing to run.
        PolicyError: the site forbids a volume.
    """
    placed = place({**_system(mounted, host), **_volumes(spec, config, host)}, host.image, host.node)
    for where, mount in placed.items():
        if mount.bound:  # links of the image, or of another volume, may have led it elsewhere
            check_target(config.policy, mount.origin, where)
    view = View(host.image, host.node, {target: mount.source for target, mount in placed.items()})
    env = environment(spec, mounted, config, host, view)
    workdir = _workdir(spec, mounted, host, view)
    env.pop("OLDPWD", None)
    env["PWD"] = workdir  # what shells would make of it; bubblewrap does the same
    command = _command(spec, mounted)
    check_command(command[0], env["PATH"], workdir, view)
    argv = [*mounted.join, host.bwrap]
    if host.uid == 0:
        argv += ("--cap-drop", "ALL")
        if not host.is_admin:
            argv.append("--unshare-user")  # bubblewrap takes root for an administrator
    if spec.new_session:
        argv.append("--new-session")
    if spec.die_with_parent:
        argv.append("--die-with-parent")
    view_steps = tuple(steps(placed, host.image, host.node, mounted.root))
    for step in view_steps:
        argv += ("--" + step.kind, step.source, step.target) if step.source else ("--" + step.kind, step.target)
    inherited = dict(env)
    for name, value in env.items():
        if name.startswith(_LOADER_PREFIXES):
            argv += ("--setenv", name, value)
            del inherited[name]
    argv += ("--chdir", workdir, "--", *command)
    plan = None
    if not spec.new_session:  # a process that leads a group cannot begin a session; a child of it can
        plan = Plan(
            server=mounted.server,
            anchor=mounted.etc_dir,
            steps=view_steps,
            command=command,
            env=env,
            workdir=workdir,
            die_with_parent=spec.die_with_parent,
        )
    line = record.head(
        spec.by,
        mounted.image.digest,
        mounted.image.reference,
        mounted.backend,
        host.uid,
        host.environ,
        os.path.basename(command[0]),
    )
    options = len(mounted.join) + 1
    return Launch(
        tuple(argv), inherited, mounted.fds, plan, (record.path(config), line), options, config.record_durations
    )


def sourced(setup: str, shell: str, command: tuple[str, ...]) -> tuple[str, ...]:
    """A command that the image's ``shell`` becomes after it has sourced the lines of ``setup``.

    Raises:
        LaunchError: there is a ``setup``, and the image has no shell.
    """
    if not setup:
        return command
    if not shell:
        raise LaunchError(
            "The image has no shell", "The task's setup needs one.", "Leave setup out, or use another image."
        )
    return (shell, "-c", f'{setup}\nexec "$@"', shell, *command)


def execute(launch: Launch, began: float, *, noted: bool = False) -> NoReturn:
    """Become the task: the process, its id and its open descriptors stay, its program changes.

    ``began`` is the time.time() at which this process began to work on it, for the run record.  With ``noted`` this
    process becomes bubblewrap, whose child the task is, so that the record says how it ended.

    Raises:
        LaunchError: the kernel refused.
    """
    from udi_core.become import become, can_become, restore_signals

    restore_signals()
    if launch.plan is not None and not noted and can_become():
        if launch.durations and launch.record[0]:
            from udi_core.waiter import end_as, wait_for

            plan = replace(launch.plan, die_with_parent=True)
            raise SystemExit(end_as(wait_for(launch.record, began, lambda: become(plan))))
        record.write(*launch.record, start=began, setup=time.time() - began)
        become(launch.plan)
    fd = task_files.begin(*launch.record, start=began, setup=time.time() - began)
    try:
        argv = launch.argv if fd < 0 else launch.noted(fd)
        # bubblewrap makes a user namespace for each task of an ordinary user.
        env = {**APART, **launch.env} if is_rank(launch.env) and os.geteuid() else launch.env
        os.execve(argv[0], argv, env)  # noqa: S606 -- becoming the task is the point
    except OSError as error:
        raise LaunchError(f"{launch.argv[0]} cannot be started", error.strerror or str(error)) from error


def environment(spec: LaunchSpec, mounted: MountedImage, config: Config, host: Host, view: Tree) -> dict[str, str]:
    """The task's environment.

    Lowest first: what ranks of MPI need in namespaces of their own, host, image, ``env_file``, ``env``, configuration
    (modules, user, site).  Host variables that name files of the host are left out, and PATH is the image's.
    ``${NAME}`` in the configuration stands for what the variable is without it, so that a module can add to
    LD_LIBRARY_PATH.
    """
    result = {"PATH": DEFAULT_PATH}
    if is_rank(host.environ) and not mounted.join and not (host.uid == 0 and host.is_admin):
        result |= APART
    for name, value in host.environ.items():
        keep = name in _KEPT_WHEN_CLEARED if spec.clearenv else not (names_files(name) or name in _SECRETS)
        if keep and (name not in _IF_VISIBLE or (value.startswith("/") and view.kind(resolve(view, value)))):
            result[name] = value
    image = mounted.image.config.env
    result.update((name, value) for name, value in image.items() if name not in _IDENTITY or name not in result)
    result.update(spec.env_file)
    result.update(spec.env)
    result.update({name: _expand(value, result) for name, value in config.env.items()})
    return result


def names_files(variable: str) -> bool:
    """Whether a variable leads a loader, an interpreter or a compiler to files, which differ from node to image."""
    return variable in _SCRUBBED or variable.startswith(_SCRUBBED_PREFIXES)


def _expand(value: str, env: Mapping[str, str]) -> str:
    before, brace, rest = value.partition("${")
    name, end, after = rest.partition("}")
    if not brace or not end:
        return value
    return before + env.get(name, "") + _expand(after, env)


def _system(mounted: MountedImage, host: Host) -> dict[str, Mount]:
    """What every task sees of the node."""
    found = {
        "/dev": Mount("dev-bind", "/dev"),
        "/etc": Mount("ro-bind", mounted.etc_dir),
        "/proc": Mount("bind", "/proc"),
        "/sys": Mount("bind", "/sys"),
    }
    if host.uid == 0:
        # Without capabilities, root still owns the node's devices and the kernel's settings.
        found["/dev"] = Mount("dev")
        found["/sys"] = Mount("ro-bind", "/sys")
        for path in _SETTINGS:
            if host.node.kind(path):
                found[path] = Mount("ro-bind", path)
        if host.node.kind("/dev/shm") == "dir":  # noqa: S108
            found["/dev/shm"] = Mount("bind", "/dev/shm")  # noqa: S108
    return found


def _volumes(spec: LaunchSpec, config: Config, host: Host) -> dict[str, Mount]:
    """The volumes by target: what is shown unasked, then the configuration's, then the caller's."""
    asked = [(Volume.parse(text), text not in config.from_site) for text in config.volumes]
    asked += [(volume, True) for volume in spec.volumes] + [(volume, False) for volume in spec.support]
    found = {
        target: mount
        for target, mount in _automatic(spec, config, host).items()
        if not any(is_below(target, volume.target) for volume, _ in asked)
    }
    for volume, bound in asked:
        kind, origin = "ro-bind" if volume.read_only else "bind", f"The volume {volume}"
        if bound:
            check_source(config.policy, volume, host.node)
            check_target(config.policy, origin, volume.target)
        found[volume.target] = Mount(kind, volume.source, origin, bound)
    return found


def _automatic(spec: LaunchSpec, config: Config, host: Host) -> dict[str, Mount]:
    """The caller's own directories, and that of its step's PMIx server, at the same path as on the node."""
    unknown = set(config.automatic) - set(_AUTOMATIC)
    if unknown:
        raise ConfigError(
            f"{config.origins.get('automatic', 'The configuration')} sets automatic to a wrong value",
            f"{', '.join(sorted(unknown))} is not known.",
            f"Known are: {', '.join(_AUTOMATIC)}",
        )
    paths = {
        "home": host.environ.get("HOME", ""),
        "tmp": "/tmp",  # noqa: S108
        "scratch": host.environ.get("SCRATCH", ""),
        "tmpdir": host.environ.get("TMPDIR", ""),
        "cwd": host.cwd,
        "PMIx": host.environ.get(SERVER_DIRECTORY, ""),
    }
    found: dict[str, Mount] = {}
    for name in paths:
        path = paths[name]
        if not path.startswith("/"):
            continue
        path = "/" + os.path.normpath(path).lstrip("/")
        if path == "/" or any(is_below(path, each) for each in _IMAGE_OWNED):
            continue
        if denied_target(config.policy, path):
            continue
        denied = denied_source(config.policy, path, host.node)
        if denied or name not in (*config.automatic, "PMIx") or (name == "home" and not spec.home):
            if name in ("home", "tmp"):
                found[path] = Mount("tmpfs", "", f"The {name} directory")
        elif host.node.kind(resolve(host.node, path)) == "dir":
            if name == "cwd" and host.image.names(resolve(host.image, path)):
                continue  # what an image has is not hidden unasked
            found.setdefault(path, Mount("bind", path, f"The {name} directory {path}"))
    # One that lies in another is there already, unless an empty one lies between them.
    return {path: mount for path, mount in found.items() if not mount.source or not _around(path, found).source}


def _around(path: str, found: Mapping[str, Mount]) -> Mount:
    """The innermost mount in which another one lies; an empty one if there is none."""
    outer = [each for each in found if each != path and is_below(path, each)]
    return found[max(outer, key=len)] if outer else Mount("tmpfs")


def _workdir(spec: LaunchSpec, mounted: MountedImage, host: Host, view: Tree) -> str:
    def exists(path: str) -> bool:
        return path.startswith("/") and view.kind(resolve(view, path)) == "dir"

    if spec.workdir is not None:
        if not exists(spec.workdir):
            raise LaunchError(
                f"The work directory {spec.workdir} does not exist in the image",
                "" if spec.workdir.startswith("/") else "It is not an absolute path.",
                "Name another one, or mount it with a volume.",
            )
        # With "..", PWD would be no name that POSIX allows.
        return resolve(view, spec.workdir) if ".." in spec.workdir.split("/") else spec.workdir
    return next(filter(exists, (host.cwd, mounted.image.config.workdir)), "/")


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
