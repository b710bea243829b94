"""``udi completion``: scripts made from the parser, so that they never lag behind it."""

from __future__ import annotations

import argparse

from udi_core.cli.parser import COMMANDS, Command, Parser, plugins

_REFERENCES = frozenset({"inspect", "lookup", "path", "pull", "rm", "run", "shell", "verify"})


# The last column of `udi images` is the reference.
_LIST = "udi images 2>/dev/null | awk 'NR>1{print $NF}'"


def completion(arguments: argparse.Namespace) -> int:
    """Print the script; ``eval "$(udi completion bash)"``."""
    commands = {**COMMANDS, **plugins()}
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell](commands))
    return 0


def _options(command: Command) -> list[tuple[str, str]]:
    parser = Parser(add_help=False)
    command.arguments(parser)
    return [
        (option, (action.help or "").replace("'", ""))
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def _verbs(command: Command) -> list[str]:
    parser = Parser(add_help=False)
    command.arguments(parser)
    return [verb for action in parser._actions if isinstance(action.choices, dict) for verb in action.choices]


def _bash(commands: dict[str, Command]) -> str:
    cases = [
        f"    {name}) words='{' '.join([*_verbs(command), *(option for option, _ in _options(command))])}' ;;"
        for name, command in commands.items()
    ]
    return "\n".join(
        [
            "_udi() {",
            '  local words="" current="${COMP_WORDS[COMP_CWORD]}"',
            f"  if [ \"$COMP_CWORD\" -eq 1 ]; then words='{' '.join(commands)}'; else",
            '  case "${COMP_WORDS[1]}" in',
            *cases,
            "  esac",
            f'  case " {" ".join(sorted(_REFERENCES))} " in *" ${{COMP_WORDS[1]}} "*)',
            f'    case "$current" in -*) ;; *) words="$words $({_LIST})" ;; esac ;;',
            "  esac; fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "  # A reference holds colons, at which readline splits words.",
            '  declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$current"',
            "  return 0",
            "}",
            "complete -o default -F _udi udi",
        ]
    )


def _zsh(commands: dict[str, Command]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(commands)


def _fish(commands: dict[str, Command]) -> str:
    lines = ["complete -c udi -f"]
    for name, command in commands.items():
        lines.append(f"complete -c udi -n __fish_use_subcommand -a {name} -d '{command.help}'")
        lines += [
            f"complete -c udi -n '__fish_seen_subcommand_from {name}' -l {option[2:]} -d '{text}'"
            for option, text in _options(command)
        ]
        lines += [f"complete -c udi -n '__fish_seen_subcommand_from {name}' -a {verb}" for verb in _verbs(command)]
    wanted = " ".join(sorted(_REFERENCES))
    references = _LIST.replace("$", r"\$")
    lines.append(f"complete -c udi -n '__fish_seen_subcommand_from {wanted}' -a \"({references})\"")
    return "\n".join(lines)
