"""``udi run`` and ``udi shell``: the hot path; tests/unit/udi_core/cli asserts what it does not import."""

from __future__ import annotations

import os

from udi_core.cli import BEGAN
from udi_core.config import load_config
from udi_core.errors import ImageAbsent, UsageError
from udi_core.launch import find
from udi_core.mount import NodeMounts
from udi_core.sandbox import Host, LaunchSpec, build, execute
from udi_core.store import ImageStore, StoredImage
from udi_core.volumes import Volume

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from udi_core.cli.arguments import Arguments
    from udi_core.config import Config


def run(arguments: Arguments) -> int:
    """Become the command: returns only by raising."""
    return _enter(arguments, tuple(arguments.command), arguments.entrypoint)


def shell(arguments: Arguments) -> int:
    """Become a shell of the image: bash if there is one, else sh."""
    return _enter(arguments, None, False)


def _enter(arguments: Arguments, command: tuple[str, ...] | None, entrypoint: bool | str) -> int:
    config = load_config()
    image = _image(arguments, config)
    if command is None:
        command = (image.shell or "/bin/sh", "-i")
    spec = LaunchSpec(
        command=command or _default(image, entrypoint),
        volumes=tuple(Volume.parse(each) for each in arguments.volume),
        env={key: value for each in arguments.env for key, value in _assignment(each)},
        env_file={key: value for path in arguments.env_file for key, value in read_env_file(path).items()},
        clearenv=arguments.clearenv,
        workdir=arguments.workdir,
        entrypoint=entrypoint,
    )
    mounted = NodeMounts(config, ImageStore(config.store)).mount(image)
    execute(build(spec, mounted, config, Host.observe(mounted)), BEGAN)


def _image(arguments: Arguments, config: Config) -> StoredImage:
    platform = None
    if arguments.platform:
        from udi_core.platforms import parse_platform

        platform = parse_platform(arguments.platform)
    try:
        return find(arguments.reference, config, platform=platform, pull_missing=False)
    except ImageAbsent:
        if arguments.no_pull:
            raise
    from udi_core.cli.ending import orderly_end
    from udi_core.cli.show import lazy_progress

    with orderly_end(), lazy_progress() as progress:
        return find(arguments.reference, config, platform=platform, progress=progress)


def _default(image: StoredImage, entrypoint: bool | str) -> tuple[str, ...]:
    command = image.config.cmd
    if not command and not entrypoint:
        raise UsageError(
            "There is nothing to run", "No command was given, and the image has none.", "Write: udi run REF -- CMD …"
        )
    return command


def _assignment(text: str) -> list[tuple[str, str]]:
    """``K=V``; or ``K`` with this environment's value, and nothing where it has none (docker-run(1), --env)."""
    key, equals, value = text.partition("=")
    if not key:
        raise UsageError(f"--env {text!r} is not K=V", "The name is missing.", "Write K=V, or K to pass it on.")
    if equals:
        return [(key, value)]
    return [(key, os.environ[key])] if key in os.environ else []


def read_env_file(path: str) -> dict[str, str]:
    """The variables of an env file: ``K=V`` or ``K`` on each line, ``#`` comments (docker-run(1), --env-file)."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise UsageError(f"The env file {path} cannot be read", error.strerror or str(error)) from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.lstrip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("="):
            raise UsageError(f"The env file {path} is malformed", f"line {number}: {line}", "Write K=V.")
        if "\0" in text:
            raise UsageError(f"The env file {path} is malformed", f"line {number} has a NUL byte.", "Write K=V.")
        found.update(_assignment(text))
    return found
