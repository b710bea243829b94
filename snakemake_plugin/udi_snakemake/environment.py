"""The environment that a program in an image gets when the front was asked as apptainer: pure, text in, text out.

The rules are apptainer's (its user guide, "Environment and Metadata"), because workflows were written against them: the
host's variables pass and win over the image's, except for the search paths and HOME, which are the image's.  The core's
own rule (the image wins) is that of ``udi run``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from udi_core import UsageError
from udi_snakemake.arguments import PREFIXES, Action

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LIBRARIES = "/.singularity.d/libs"

#: Never taken from the host: they name the host's programs and libraries.
_THE_IMAGES = ("PATH", "LD_LIBRARY_PATH", "HOME")
#: What reaches even a clean environment.
_ALWAYS = (
    "TERM",
    *(name for base in ("http", "https", "ftp", "all", "no") for name in (f"{base}_proxy", f"{base}_proxy".upper())),
)
#: ``APPTAINERENV_<THIS>`` changes PATH instead of setting a variable.
_PATH_EDITS = ("PREPEND_PATH", "APPEND_PATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """``clear``: start from nothing instead of from the host's variables; then ``env`` is set."""

    clear: bool
    env: dict[str, str] = field(default_factory=dict)


def build(
    action: Action,
    host: Mapping[str, str],
    image: Mapping[str, str],
    *,
    name: str,
    home: str,
    env_file: Mapping[str, str] | None = None,
) -> Environment:
    """What to set, over the host's variables unless ``clear``.

    Args:
        name: of the image, for ``APPTAINER_CONTAINER``: its path or reference.
        home: of the program, ``HOME``.
        env_file: what ``--env-file`` holds, parsed.
    """
    if action.cleanenv:
        env = {**image, "LANG": "C", **{key: host[key] for key in _ALWAYS if key in host}}
    else:
        env = {key: host.get(key, value) for key, value in image.items()}
    env["PATH"] = image.get("PATH", DEFAULT_PATH)
    libraries = image.get("LD_LIBRARY_PATH")
    env["LD_LIBRARY_PATH"] = f"{libraries}:{LIBRARIES}" if libraries else LIBRARIES
    env["HOME"] = home
    for prefix in PREFIXES:
        env[f"{prefix}_CONTAINER"] = name
        env[f"{prefix}_NAME"] = name.rpartition("/")[2]
        env[f"{prefix}_COMMAND"] = action.verb
        env[f"{prefix}_ENVIRONMENT"] = "/.singularity.d/env/91-environment.sh"
        env[f"{prefix}_BIND"] = ",".join(f"{bind.source}:{bind.target}" for bind in action.binds)
    if action.verb == "shell":
        env.setdefault("PS1", "UDI> ")
    asked = {**(env_file or {}), **injected(host), **action.env}
    for key, value in asked.items():
        if key not in _PATH_EDITS:
            env[key] = value
    if asked.get("PREPEND_PATH"):
        env["PATH"] = f"{asked['PREPEND_PATH']}:{env['PATH']}"
    if asked.get("APPEND_PATH"):
        env["PATH"] = f"{env['PATH']}:{asked['APPEND_PATH']}"
    return Environment(clear=action.cleanenv, env=env)


def injected(host: Mapping[str, str]) -> dict[str, str]:
    """``X`` for each ``APPTAINERENV_X`` and ``SINGULARITYENV_X``; the first wins."""
    found: dict[str, str] = {}
    for prefix in reversed(PREFIXES):
        marker = f"{prefix}ENV_"
        found.update(
            {
                key[len(marker) :]: value
                for key, value in host.items()
                if len(key) > len(marker) and key.startswith(marker)
            }
        )
    return found


def parse_env_file(text: str, path: str) -> dict[str, str]:
    """``NAME=VALUE`` lines; blank lines, ``#`` comments, ``export`` and one pair of quotes around a value are allowed.

    Raises:
        UsageError: names the line.  The real program runs the file as a shell script; this one only reads it.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.removeprefix("export ").lstrip().partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(
                f"{path}, line {number}: {raw!r} is not an environment variable",
                "UDI reads the file and does not run it.",
                "Write NAME=VALUE, one to a line.",
            )
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found
