"""The command line of apptainer(1) and singularity(1), as far as UDI speaks it: text in, values out.

Pure: nothing is looked up, opened or printed.  Long flags are ``--flag VALUE`` or ``--flag=VALUE``, short ones
``-B VALUE``, ``-BVALUE`` or ``-B=VALUE``, short switches combine (``-ec``), and flags end at the image, because
what follows belongs to the program in it: the rules of pflag, which both programs use.

Every flag can also be given as ``APPTAINER_<FLAG>`` or ``SINGULARITY_<FLAG>``; the command line wins over the
environment, and ``APPTAINER_`` over ``SINGULARITY_``.  Binds of both are added up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from udi_core import UsageError

PREFIXES = ("APPTAINER", "SINGULARITY")
ACTIONS = ("exec", "run", "shell")

_SWITCH, _VALUE = "switch", "value"
#: flag -> (kind, further spellings, names of the variable without prefix)
_Flags = Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]

_ACTION_FLAGS: _Flags = {
    "--bind": (_VALUE, ("-B",), ("BIND", "BINDPATH")),
    "--home": (_VALUE, ("-H",), ("HOME",)),
    "--pwd": (_VALUE, ("--cwd",), ("CWD", "TARGET_CWD", "PWD", "TARGET_PWD")),
    "--env": (_VALUE, (), ("ENV",)),
    "--env-file": (_VALUE, (), ("ENV_FILE",)),
    "--nv": (_SWITCH, (), ("NV",)),
    "--rocm": (_SWITCH, (), ("ROCM",)),
    "--cleanenv": (_SWITCH, ("-e",), ("CLEANENV",)),
    "--contain": (_SWITCH, ("-c",), ("CONTAIN",)),
    "--containall": (_SWITCH, ("-C",), ("CONTAINALL",)),
    "--no-home": (_SWITCH, (), ("NO_HOME",)),
    "--writable-tmpfs": (_SWITCH, (), ("WRITABLE_TMPFS",)),
}
_SHELL_FLAGS: _Flags = {"--shell": (_VALUE, ("-s",), ("SHELL",))}
_PULL_FLAGS: _Flags = {
    "--name": (_VALUE, (), ()),
    "--dir": (_VALUE, (), ("PULLDIR", "PULLFOLDER")),
    "--force": (_SWITCH, ("-F",), ("FORCE",)),
    "--arch": (_VALUE, (), ("PULL_ARCH",)),
    "--disable-cache": (_SWITCH, (), ("DISABLE_CACHE",)),
    "--no-https": (_SWITCH, ("--nohttps",), ("NOHTTPS",)),
}
_INSPECT_FLAGS: _Flags = {
    "--json": (_SWITCH, ("-j",), ()),
    "--labels": (_SWITCH, ("-l",), ()),
    "--environment": (_SWITCH, ("-e",), ()),
    "--runscript": (_SWITCH, ("-r",), ()),
    "--all": (_SWITCH, (), ()),
}
_GLOBAL_FLAGS: _Flags = {
    "--quiet": (_SWITCH, ("-q",), ("QUIET",)),
    "--silent": (_SWITCH, ("-s",), ("SILENT",)),
    "--verbose": (_SWITCH, ("-v",), ("VERBOSE",)),
    "--debug": (_SWITCH, ("-d",), ("DEBUG",)),
    "--nocolor": (_SWITCH, (), ("NOCOLOR",)),
    "--version": (_SWITCH, (), ()),
    "--help": (_SWITCH, ("-h",), ()),
}
# The short forms of these would shadow an action's own (-s of shell, -e of inspect), so behind the verb long ones only.
_EVERYWHERE: _Flags = {
    flag: (kind, ("-h",) if flag == "--help" else (), env)
    for flag, (kind, _, env) in _GLOBAL_FLAGS.items()
    if flag != "--version"
}

FLAGS: Mapping[str, _Flags] = {
    "exec": _ACTION_FLAGS,
    "run": _ACTION_FLAGS,
    "shell": {**_ACTION_FLAGS, **_SHELL_FLAGS},
    "pull": _PULL_FLAGS,
    "inspect": _INSPECT_FLAGS,
}

_READ_ONLY = "An image of UDI is one read-only squashfs file."
#: Flags and verbs people know from the real program, with the way out.
REFUSED_FLAGS = {
    "--overlay": f"{_READ_ONLY} Write to a bound directory: --bind DIR:/path.",
    "-o": f"{_READ_ONLY} Write to a bound directory: --bind DIR:/path.",
    "--writable": f"{_READ_ONLY} Write to a bound directory: --bind DIR:/path.",
    "-w": f"{_READ_ONLY} Write to a bound directory: --bind DIR:/path.",
    "--fakeroot": "A task runs as its caller. Build the image elsewhere, where you are root.",
    "-f": "A task runs as its caller. Build the image elsewhere, where you are root.",
    "--net": "A task uses the network of its node.",
    "-n": "A task uses the network of its node.",
    "--nvccli": "Use --nv.",
    "--workdir": "Use --bind DIR:/tmp.",
    "-W": "Use --bind DIR:/tmp.",
    "--scratch": "Use --bind DIR:DIR.",
    "-S": "Use --bind DIR:DIR.",
    "--mount": "Use --bind SRC:DST[:ro].",
    "--docker-login": "Use `udi login REGISTRY`, or APPTAINER_DOCKER_USERNAME and APPTAINER_DOCKER_PASSWORD.",
}
REFUSED_VERBS = {
    "build": "UDI runs images and does not build them. Build with docker, podman or buildah, push to a registry,"
    " and write docker://REGISTRY/REPOSITORY:TAG; or save it and write docker-archive:FILE.",
    "instance": "There is nothing to keep running: entering an image takes milliseconds. Use exec.",
    "push": "Push with docker, podman or skopeo.",
    "cache": "Use `udi images`, `udi rm` and `udi gc`.",
    "remote": "Use `udi login REGISTRY`.",
    "registry": "Use `udi login REGISTRY` and `udi logout REGISTRY`.",
    "test": "Use exec IMAGE COMMAND.",
    "verify": "Use `udi verify REF`.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A host path shown in the image; both paths as given, ``target`` equal to ``source`` where it was left out."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """``exec``, ``run`` or ``shell``: a program that is to start in an image.

    Attributes:
        home: (source, target) of ``--home``, or None: the caller's own.
        contain: no home, no working directory, a /tmp of its own.  ``--containall`` sets ``cleanenv`` too.
        writable_tmpfs: asked for and not given; what an image's program writes needs a bind.
        env: of ``--env`` and ``APPTAINER_ENV``; ``APPTAINERENV_X`` is read later, as it also reaches past cleanenv.
    """

    verb: str
    image: str
    command: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    home: tuple[str, str] | None = None
    no_home: bool = False
    pwd: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    env_file: str | None = None
    nv: bool = False
    rocm: bool = False
    cleanenv: bool = False
    contain: bool = False
    writable_tmpfs: bool = False
    shell: str | None = None
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """``pull``: a reference that is to be resolved once and written down as a pointer file.

    Attributes:
        path: of the file to write, as given; None derives it from the reference.
    """

    image: str
    path: str | None = None
    force: bool = False
    architecture: str | None = None
    plain_http: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """``inspect``: what is known of an image; ``parts`` among labels, environment, runscript."""

    image: str
    json: bool = False
    parts: tuple[str, ...] = ("labels",)


@dataclass(frozen=True, slots=True)
class Help:
    """``--help``, of the program or of one verb."""

    topic: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """``--version``; the shell part of the front answers it before Python is started."""


Request = Action | Pull | Inspect | Help | Version


def parse(argv: Sequence[str], environ: Mapping[str, str], program: str = "apptainer") -> Request:
    """Understand a command line.

    Raises:
        UsageError: an unknown flag or verb (naming those that there are), one that UDI refuses (saying what to
            do instead), or a value that is missing or malformed.
    """
    before, rest = _split(argv, _GLOBAL_FLAGS, program, program)
    if "--version" in before or rest[:1] == ["version"]:
        return Version()
    if "--help" in before or rest[:1] in ([], ["help"]):
        return Help(rest[1] if rest[:1] == ["help"] and len(rest) > 1 else "")
    verb, rest = rest[0], rest[1:]
    if verb not in FLAGS:
        raise UsageError(
            f"{program} {verb}: UDI does not do this",
            REFUSED_VERBS.get(verb, f"This {program} is UDI's; it knows {', '.join(FLAGS)}, help and version."),
            f'The real {program} is used where UDI_SNAKEMAKE=0 is set, or after: eval "$(udi env --off snakemake)"',
        )
    flags, rest = _split(rest, {**_EVERYWHERE, **FLAGS[verb]}, f"{program} {verb}", program)
    if "--help" in flags:
        return Help(verb)
    given = _Given({**before, **flags}, environ, FLAGS[verb])
    quiet = given.switch("--quiet") or given.switch("--silent")
    if verb == "pull":
        return _pull(given, rest, quiet, program)
    if not rest:
        raise UsageError(f"{program} {verb}: no image is named", "", f"{program} {verb} [FLAGS] IMAGE [COMMAND…]")
    if verb == "inspect":
        asked = tuple(part for part in ("labels", "environment", "runscript") if given.switch(f"--{part}"))
        everything = ("labels", "environment", "runscript") if given.switch("--all") else ("labels",)
        return Inspect(image=rest[0], json=given.switch("--json"), parts=asked or everything)
    return _action(verb, given, rest, quiet, program)


def _pull(given: _Given, rest: list[str], quiet: bool, program: str) -> Pull:
    if not 1 <= len(rest) <= 2:
        raise UsageError(f"{program} pull: {len(rest)} names are given", "", f"{program} pull [FLAGS] [FILE] IMAGE")
    name = given.value("--name") or (rest[0] if len(rest) == 2 else None)
    directory = given.value("--dir")
    if name and directory and not name.startswith("/"):
        name = f"{directory}/{name}"
    elif directory and not name:
        name = f"{directory}/{default_name(rest[-1])}"
    return Pull(
        image=rest[-1],
        path=name,
        force=given.switch("--force"),
        architecture=given.value("--arch"),
        plain_http=given.switch("--no-https"),
        quiet=quiet,
    )


def default_name(image: str) -> str:
    """The file that ``pull IMAGE`` writes: ``tool_2.1.sif`` for ``docker://ghcr.io/lab/tool:2.1``."""
    base = image.partition("@")[0].rstrip("/").rpartition("/")[2]
    name, _, tag = base.partition(":")
    return f"{name}_{tag or 'latest'}.sif"


def _action(verb: str, given: _Given, rest: list[str], quiet: bool, program: str) -> Action:
    if verb == "exec" and len(rest) < 2:
        raise UsageError(f"{program} exec: no command is named", "", f"{program} exec [FLAGS] IMAGE COMMAND…")
    if given.environment("OVERLAY", "OVERLAYIMAGE"):
        raise UsageError(
            f"{program}: an overlay is set in the environment (APPTAINER_OVERLAY)",
            REFUSED_FLAGS["--overlay"],
            "Unset it.",
        )
    if _truth(given.environment("WRITABLE") or "0"):
        raise UsageError(
            f"{program}: APPTAINER_WRITABLE is set in the environment", REFUSED_FLAGS["--writable"], "Unset it."
        )
    home = given.value("--home")
    everything = given.switch("--containall")
    return Action(
        verb=verb,
        image=rest[0],
        command=tuple(rest[1:]),
        binds=tuple(bind for text in given.every("--bind") for bind in parse_binds(text)),
        home=_home(home) if home else None,
        no_home=given.switch("--no-home"),
        pwd=given.value("--pwd"),
        env=_assignments(given.every("--env")),
        env_file=given.value("--env-file"),
        nv=given.switch("--nv"),
        rocm=given.switch("--rocm"),
        cleanenv=given.switch("--cleanenv") or everything,
        contain=given.switch("--contain") or everything,
        writable_tmpfs=given.switch("--writable-tmpfs"),
        shell=given.value("--shell") if verb == "shell" else None,
        quiet=quiet,
    )


class _Given:
    """What was given for each flag: the command line first, then ``APPTAINER_``, then ``SINGULARITY_``."""

    def __init__(
        self,
        flags: Mapping[str, list[str]],
        environ: Mapping[str, str],
        known: _Flags,
    ) -> None:
        self._flags = flags
        self._environ = environ
        self._variables = {flag: names for flag, (_, _, names) in {**_GLOBAL_FLAGS, **known}.items()}

    def environment(self, *names: str) -> str | None:
        for prefix in PREFIXES:
            for name in names:
                value = self._environ.get(f"{prefix}_{name}")
                if value:
                    return value
        return None

    def every(self, flag: str) -> list[str]:
        """All values, those of the environment first, so that later ones win."""
        value = self.environment(*self._variables[flag])
        return ([value] if value else []) + self._flags.get(flag, [])

    def value(self, flag: str) -> str | None:
        values = self.every(flag)
        return values[-1] if values else None

    def switch(self, flag: str) -> bool:
        value = self.value(flag)
        return value is not None and _truth(value)


def _truth(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "t", "true", "y", "yes", "on"):
        return True
    if lowered in ("0", "f", "false", "n", "no", "off", ""):
        return False
    raise UsageError(f"{text!r} is neither true nor false", "It is the value of a switch.", "Write true or false.")


def _split(argv: Sequence[str], known: _Flags, where: str, program: str) -> tuple[dict[str, list[str]], list[str]]:
    """Values of the leading flags by their first spelling, and what follows them."""
    spelling = {name: flag for flag, (_, more, _) in known.items() for name in (flag, *more)}
    found: dict[str, list[str]] = {}
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        text = rest.pop(0)
        if text == "--":
            break
        if text.startswith("--"):
            name, equals, value = text.partition("=")
            inline = value if equals else None
        else:
            name, inline = text[:2], text[2:] or None
        flag = spelling.get(name)
        if flag is None:
            raise _unknown(name, where, program, known)
        if known[flag][0] == _SWITCH:
            if inline is not None and not text.startswith("--") and not inline.startswith("="):
                rest.insert(0, "-" + inline)
                inline = None
            found.setdefault(flag, []).append("true" if inline is None else inline.removeprefix("="))
            continue
        if inline is None:
            if not rest:
                raise UsageError(f"{where}: {name} wants a value", "", f"{name} VALUE")
            inline = rest.pop(0)
        elif not text.startswith("--"):
            inline = inline.removeprefix("=")
        found.setdefault(flag, []).append(inline)
    return found, rest


def _unknown(name: str, where: str, program: str, known: _Flags) -> UsageError:
    supported = "Supported are: " + " ".join(sorted({n for flag, (_, more, _) in known.items() for n in (flag, *more)}))
    way_back = f'Leave it out, or go back to the real {program}: eval "$(udi env --off snakemake)"'
    if name in REFUSED_FLAGS:
        return UsageError(f"{where}: {name} cannot be honoured", f"{REFUSED_FLAGS[name]}\n{supported}", way_back)
    return UsageError(
        f"{where}: UDI does not know {name}",
        f"{supported}\nThis {program} is UDI's: a flag that it ignored could change what your workflow computes.",
        way_back,
    )


def parse_binds(text: str) -> list[Bind]:
    """``SRC[:DST[:OPTIONS]]``, several with commas between; ``\\:`` and ``\\,`` are themselves.

    Options are those of apptainer-exec(1): ``ro`` and ``rw``.
    """
    binds: list[Bind] = []
    for item in _fields(text, ","):
        # "a:b:ro,rw": options are separated by the same comma as binds.
        if binds and item in ("ro", "rw"):
            last = binds[-1]
            binds[-1] = Bind(source=last.source, target=last.target, read_only=item == "ro")
            continue
        parts = _fields(item, ":")
        if not parts[0] or len(parts) > 3:
            raise UsageError(f"{item!r} is not a bind", "It is not SRC[:DST[:ro]].", "--bind /data:/data:ro")
        options = parts[2] if len(parts) == 3 else "rw"
        if options not in ("ro", "rw"):
            raise UsageError(
                f"{item!r} is not a bind", f"The option {options!r} is not ro or rw.", "--bind /data:/data:ro"
            )
        target = parts[1] if len(parts) > 1 and parts[1] else parts[0]
        binds.append(Bind(source=parts[0], target=target, read_only=options == "ro"))
    return binds


def _fields(text: str, separator: str) -> list[str]:
    """Split at ``separator`` where no backslash stands before it; only the last split takes backslashes away."""
    parts = re.split(rf"(?<!\\){separator}", text)
    return [part for part in parts if part] if separator == "," else [re.sub(r"\\([:,])", r"\1", p) for p in parts]


def _home(text: str) -> tuple[str, str]:
    source, colon, target = text.partition(":")
    if not source:
        raise UsageError(f"{text!r} is not a home directory", "It is not SRC[:DST].", "--home /data/work")
    return source, target if colon and target else source


def _assignments(texts: Sequence[str]) -> dict[str, str]:
    """``K=V[,K2=V2]``; a comma that no ``K=`` follows belongs to the value, as in apptainer >= 1.1."""
    found: dict[str, str] = {}
    for text in texts:
        for item in re.split(r",(?=[A-Za-z_][A-Za-z0-9_]*=)", text):
            name, equals, value = item.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise UsageError(f"{item!r} is not an environment variable", "It is not NAME=VALUE.", "--env LANG=C")
            found[name] = value
    return found
