"""The arguments of ``udi run`` and ``udi shell``, read without argparse, which costs a warm start 10 ms.

argparse writes their help, and says what is wrong with a line that :func:`read` does not understand; its parser is
made from the same table.
"""

from __future__ import annotations

from udi_core.values import dataclass

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option.

    Attributes:
        names: as they are typed; the last one, without its dashes, names the value.
        help: one line.
        metavar: what stands for its argument; "" if it takes none.
        many: it may be repeated, and every argument counts.
        optional: its argument follows ``=`` or is left out; then the value is True.
        run_only: ``udi shell`` does not have it.
    """

    names: tuple[str, ...]
    help: str
    metavar: str = ""
    many: bool = False
    optional: bool = False
    run_only: bool = False

    @property
    def attribute(self) -> str:
        """The name of its value."""
        return self.names[-1].lstrip("-").replace("-", "_")


OPTIONS = (
    Option(
        names=("-V", "--volume"),
        metavar="SRC:DST[:ro]",
        many=True,
        help="show a file or directory of this machine in the image; may be repeated",
    ),
    Option(names=("-e", "--env"), metavar="K[=V]", many=True, help="set a variable"),
    Option(names=("--env-file",), metavar="FILE", many=True, help="set the variables of a file"),
    Option(names=("--clearenv",), help="pass no variable of this environment on"),
    Option(names=("-w", "--workdir"), metavar="DIR", help="begin in this directory of the image"),
    Option(names=("--no-pull",), help="fail if the image is not in the store"),
    Option(names=("--platform",), metavar="OS/ARCH[/VARIANT]", help="default: this machine's"),
    Option(
        names=("--entrypoint",),
        metavar="CMD",
        optional=True,
        run_only=True,
        help="run the image's entrypoint, or --entrypoint=CMD, in front of the command",
    ),
)


class Arguments:
    """What was asked for: one attribute for each option, and ``reference`` and ``command``."""

    volume: list[str]
    env: list[str]
    env_file: list[str]
    clearenv: bool
    workdir: str | None
    no_pull: bool
    platform: str | None
    entrypoint: bool | str
    reference: str
    command: list[str]

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


def read(verb: str, words: Sequence[str]) -> Arguments | None:
    """Read the words behind ``udi run`` or ``udi shell``; None if they are wrong, or ask for help.

    Options come before the reference; everything behind it is the command, a first ``--`` left out.
    """
    options = {name: option for option in OPTIONS if verb == "run" or not option.run_only for name in option.names}
    values: dict[str, object] = {option.attribute: default(option) for option in OPTIONS}
    rest = list(reversed(words))
    while rest and rest[-1].startswith("-"):
        word = rest.pop()
        if word == "--":
            break
        name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        option = options.get(name)
        if option is None or (equals and not option.metavar):
            return None
        if option.metavar and not equals and not option.optional:
            if not rest or (rest[-1].startswith("-") and rest[-1] != "-"):
                return None
            value = rest.pop()
        elif not word.startswith("--"):
            value = value.removeprefix("=")
        found: object = value if option.metavar and (equals or not option.optional) else True
        if option.many:
            found = [*values[option.attribute], found]  # type: ignore[misc]
        values[option.attribute] = found
    if not rest:
        return None
    reference = rest.pop()
    command = rest[::-1]
    if command and verb == "shell":
        return None
    return Arguments(**values, reference=reference, command=command[1:] if command[:1] == ["--"] else command)


def default(option: Option) -> object:
    """The value of an option that is not given."""
    return [] if option.many else None if option.metavar and not option.optional else False
