"""The table of commands and their arguments.  A command's module is imported only when it is run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from udi_core.cli.arguments import OPTIONS, Option, default
from udi_core.cli.ending import orderly_end
from udi_core.errors import UsageError
from udi_core.values import dataclass

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from typing import Any, NoReturn

Parser = argparse.ArgumentParser

# Asked for its width, argparse imports shutil for every argument that is added: 4 ms of a warm start.
_COLUMNS = os.environ.get("COLUMNS", "")
_WIDTH = int(_COLUMNS) if _COLUMNS.isdigit() and int(_COLUMNS) > 20 else 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        help: one line.
        arguments: adds its arguments to a parser.
        run: ``module:function``; takes the parsed arguments, returns the exit code.
    """

    help: str
    arguments: Callable[[Parser], None]
    run: str


def _reference(parser: Parser) -> None:
    parser.add_argument("reference", metavar="REF", help="image reference, for example docker:ubuntu:24.04")


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _platform(parser: Parser) -> None:
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="default: this machine's")


def _pull(parser: Parser) -> None:
    _reference(parser)
    parser.add_argument(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        action="append",
        default=[],
        help="default: this machine's; may be repeated, for nodes of several kinds",
    )
    parser.add_argument("--force", action="store_true", help="make the image anew, even if it is there")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the image id only")
    _json(parser)


def _images(parser: Parser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    _json(parser)


def _lookup(parser: Parser) -> None:
    _reference(parser)
    _platform(parser)


def _inspect(parser: Parser) -> None:
    _reference(parser)
    _platform(parser)
    _json(parser)


def _option(parser: Parser, option: Option) -> None:
    more: dict[str, Any] = {"help": option.help, "default": default(option)}
    if not option.metavar:
        more["action"] = "store_true"
    else:
        more |= {"metavar": option.metavar, "action": "append" if option.many else "store"}
    if option.optional:
        more |= {"nargs": "?", "const": True}
    parser.add_argument(*option.names, **more)


def _run(parser: Parser) -> None:
    for option in OPTIONS:
        _option(parser, option)
    _reference(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …", help="default: the image's command")


def _shell(parser: Parser) -> None:
    for option in OPTIONS:
        if not option.run_only:
            _option(parser, option)
    _reference(parser)


def _rm(parser: Parser) -> None:
    parser.add_argument("references", nargs="+", metavar="REF", help="tag to forget, or id:HEX of an image to remove")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e12:  # a NaN is neither
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _gc(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument(
        "--grace", type=_seconds, default=3600.0, metavar="S", help="keep what is younger (default 3600)"
    )
    _json(parser)


def _node(parser: Parser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    status = verbs.add_parser("status", help="what this node has mounted")
    _json(status)
    warm = verbs.add_parser("warm", help="pull and mount images before tasks need them")
    warm.add_argument("references", nargs="+", metavar="[KIND=]REF", help="with kinds, only the one for this node")
    warm.add_argument("--no-pull", action="store_true", help="fail if an image is not in the store")
    warm.add_argument("--hold", action="store_true", help="keep them mounted until the Slurm job ends")
    warm.add_argument("--broadcast", action="store_true", help="copy them to the disks of all nodes of this job first")
    warm.add_argument("--job", metavar="ID", help="hold them for this job, from outside of it (prolog)")
    adopted = verbs.add_parser("adopt", help="check a copy that --broadcast has sent, and use it")
    adopted.add_argument("digest", metavar="DIGEST")
    adopted.add_argument("part", metavar="FILE")
    clean = verbs.add_parser("clean", help="unmount all images that no task uses and no other job holds")
    which = clean.add_mutually_exclusive_group()
    which.add_argument("--job", metavar="ID", help="the job whose holds end; default: $SLURM_JOB_ID")
    which.add_argument("--all", action="store_true", help="end the holds of all jobs")


def _words(usage: str, epilog: str = "") -> Callable[[Parser], None]:
    """The arguments of a command that passes most of them on: none is an option to argparse."""

    def arguments(parser: Parser) -> None:
        parser.usage = f"{parser.prog} {usage}"
        parser.epilog = epilog
        parser.prefix_chars = "\0"
        parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
        parser.set_defaults(help=parser.format_help())

    return arguments


def _report(parser: Parser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or directories; default: all that you have")
    parser.add_argument("--svg", metavar="FILE", help="draw a picture as well")
    _json(parser)


def _login(parser: Parser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", help="for example ghcr.io")
    parser.add_argument("-u", "--username", metavar="NAME", help="default: asked for")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")


def _logout(parser: Parser) -> None:
    parser.add_argument("registry", metavar="REGISTRY")


def _config(parser: Parser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _json(verbs.add_parser("show", help="each value and where it came from"))


def _completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


_SBATCH = (
    "A line  #UDI --image=REF  in the script does the same as --image.  Also --env-file, --workdir and --interpreter."
    "  All other options are sbatch's.  See docs/slurm.md."
)

COMMANDS = {
    "pull": Command(help="bring an image into the store", arguments=_pull, run="images:pull"),
    "images": Command(help="list the images in the store", arguments=_images, run="images:images"),
    "lookup": Command(help="print an image's id, without network", arguments=_lookup, run="images:lookup"),
    "path": Command(help="print the path of an image's squashfs", arguments=_lookup, run="images:path"),
    "inspect": Command(help="show what is known of an image", arguments=_inspect, run="images:inspect"),
    "verify": Command(help="compare an image's bytes with its digest", arguments=_lookup, run="images:verify"),
    "run": Command(help="run a command in an image", arguments=_run, run="run:run"),
    "shell": Command(help="open a shell in an image", arguments=_shell, run="run:shell"),
    "rm": Command(help="forget tags, remove images", arguments=_rm, run="images:rm"),
    "gc": Command(help="remove images that no tag names and no task uses", arguments=_gc, run="images:gc"),
    "node": Command(help="mounts on this node", arguments=_node, run="node:node"),
    "sbatch": Command(
        help="submit a batch script that runs in an image",
        arguments=_words("[--image=[KIND=]REF] [--volume=…] [--env=…] [SBATCH OPTION…] SCRIPT [ARGUMENT…]", _SBATCH),
        run="batch:sbatch",
    ),
    "batch": Command(
        help="what Slurm starts for such a script", arguments=_words("SCRIPT [ARGUMENT…]"), run="batch:batch"
    ),
    "step": Command(
        help="run a program in the image of the job's batch script",
        arguments=_words("PROGRAM [ARGUMENT…]"),
        run="batch:step",
    ),
    "report": Command(help="show where the time went: the run records", arguments=_report, run="report:report"),
    "login": Command(help="store a registry's password", arguments=_login, run="login:login"),
    "logout": Command(help="forget a registry's password", arguments=_logout, run="login:logout"),
    "doctor": Command(
        help="say what is missing on this machine, and how to get it", arguments=_json, run="doctor:doctor"
    ),
    "config": Command(help="show the configuration", arguments=_config, run="config:config"),
    "completion": Command(help="print a shell's completion script", arguments=_completion, run="completion:completion"),
}

#: Entry point group through which adapters add commands; each names a :class:`Command`.
GROUP = "udi.commands"


class _Parser(Parser):
    def _get_formatter(self) -> argparse.HelpFormatter:
        return argparse.HelpFormatter(prog=self.prog, width=_WIDTH)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "", f"See: {self.prog} --help")


def dispatch(argv: Sequence[str]) -> int:
    """Parse a command line and run its command."""
    name = argv[0] if argv else ""
    command = COMMANDS.get(name)
    if command is not None:
        parser = _Parser(prog=f"udi {name}", description=command.help, allow_abbrev=False)
        command.arguments(parser)
        return _call(command, parser.parse_args(argv[1:]))
    commands = {**COMMANDS, **plugins()}
    if name in commands:
        parser = _Parser(prog=f"udi {name}", description=commands[name].help, allow_abbrev=False)
        commands[name].arguments(parser)
        return _call(commands[name], parser.parse_args(argv[1:]))
    everything = full_parser(commands)
    if not argv:
        everything.print_help()
        return 2
    if name == "--version":
        from importlib.metadata import version

        print("udi", version("udi-workflows"))
        return 0
    if name == "help" and len(argv) == 2 and argv[1] in commands:
        return dispatch([argv[1], "--help"])
    if name in ("-h", "--help") or argv == ["help"]:
        everything.print_help()
        return 0
    if name == "help":
        name = argv[1]
    import difflib

    near = difflib.get_close_matches(name, commands, n=1)
    raise UsageError(f"There is no command {name!r}", f"Did you mean {near[0]!r}?" if near else "", "See: udi --help")


def full_parser(commands: dict[str, Command]) -> Parser:
    """The parser of all commands, for help and completions."""
    parser = _Parser(
        prog="udi",
        description="User defined images: pull a container image once, run every task inside it.",
        epilog="Exit codes: 125 UDI's own failure while running a command, 126 not executable, 127 not found;"
        " others in docs/exit-codes.md.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(dest="name", metavar="COMMAND")
    for name, command in commands.items():
        command.arguments(verbs.add_parser(name, help=command.help, description=command.help))
    return parser


def plugins() -> dict[str, Command]:
    """The commands that installed adapters add."""
    from importlib.metadata import entry_points

    found: dict[str, Command] = {}
    for each in entry_points(group=GROUP):
        try:
            command = each.load()
        except ImportError as error:  # its framework is not installed; the core goes on without it
            print(f"udi: the command {each.name} is not available: {error}", file=sys.stderr)
            continue
        found[each.name] = command
    return found


def _call(command: Command, arguments: argparse.Namespace) -> int:
    module, _, function = command.run.partition(":")
    if "." not in module:
        module = f"udi_core.cli.{module}"
    with orderly_end():
        result: int = getattr(import_module(module), function)(arguments)
    return result
