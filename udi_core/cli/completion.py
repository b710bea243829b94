"""``udi completion``: scripts made from the parsers, so that they never lag behind them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from shlex import quote

from udi_core.cli.parser import COMMANDS, Command, Parser, plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A command, or a verb of one (``node warm``), as completions need it.

    Attributes:
        options: each one's spellings (``-e``, ``--env``), its help, and whether a value follows.
        verbs: name -> help.
        values: what its first argument may be, where that is a fixed list.
        references: whether it takes image references.
    """

    path: str
    help: str
    options: tuple[tuple[tuple[str, ...], str, bool], ...] = ()
    verbs: Mapping[str, str]
    values: tuple[str, ...] = ()
    references: bool = False

    @property
    def valued(self) -> tuple[str, ...]:
        """Options behind which a value comes."""
        return tuple(spelling for spellings, _, value in self.options for spelling in spellings if value)


def completion(arguments: argparse.Namespace) -> int:
    """Print the script; ``eval "$(udi completion bash)"``."""
    print({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell]({**COMMANDS, **plugins()}))
    return 0


def words(commands: Mapping[str, Command]) -> Iterator[Word]:
    """All commands and their verbs."""
    for name, command in commands.items():
        parser = Parser(prog=name, add_help=False)
        command.arguments(parser)
        yield from _words(name, command.help, parser)


def _words(path: str, text: str, parser: Parser) -> Iterator[Word]:
    below: list[Word] = []
    verbs: dict[str, str] = {}
    options: list[tuple[tuple[str, ...], str, bool]] = []
    values: tuple[str, ...] = ()
    references = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            verbs = {each.dest: each.help or "" for each in action._choices_actions}
            for verb, inner in action.choices.items():
                below += _words(f"{path} {verb}", verbs.get(verb, ""), inner)
        elif action.option_strings:
            options.append((tuple(action.option_strings), action.help or "", action.nargs not in (0, "?")))
        elif action.choices:
            values = tuple(map(str, action.choices))
        else:
            references = references or action.dest in ("reference", "references")
    yield Word(path=path, help=text, options=tuple(options), verbs=verbs, values=values, references=references)
    yield from below


# The last column of `udi images` is the reference; "-" stands where an image has none.
_LIST = "udi images 2>/dev/null | awk 'NR>1 && $NF != \"-\" {print $NF}'"


def bash(commands: Mapping[str, Command]) -> str:
    """A function for bash's programmable completion; where it finds nothing, readline completes file names."""
    found = list(words(commands))
    cases = [
        f"    {quote(each.path)}) options={quote(' '.join(_long(each)))} valued={quote(' '.join(each.valued))}"
        f" verbs={quote(' '.join([*each.verbs, *each.values]))} references={'yes' if each.references else ''} ;;"
        for each in found
    ]
    return "\n".join(
        [
            "_udi() {",
            # readline splits words at colons, which references have: take the line itself.
            '  local line="${COMP_LINE:0:COMP_POINT}" options= valued= verbs= references= here',
            '  local current="${line##*[[:space:]]}"',
            "  local -a typed",
            '  read -ra typed <<<"${line%"$current"}"',
            "  COMPREPLY=()",
            '  here="${typed[1]-}"',
            f'  case "$here ${{typed[2]-}}" in {_nested(found)}) here="$here ${{typed[2]}}" ;; esac',
            '  case "$here" in',
            f"    '') verbs={quote(' '.join(commands))} ;;",
            *cases,
            "  esac",
            '  case " ${typed[*]} " in *" -- "*) return 0 ;; esac',
            '  case " $valued " in *" ${typed[${#typed[@]}-1]} "*) return 0 ;; esac',
            '  if [[ $current == -* ]]; then verbs="$options"',
            f'  elif [ -n "$references" ]; then verbs="$verbs $({_LIST})"; fi',
            '  COMPREPLY=($(compgen -W "$verbs" -- "$current"))',
            # readline puts what it is given behind the last colon of what was typed.
            "  if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then",
            '    here="${current%"${current##*:}"}"',
            '    COMPREPLY=("${COMPREPLY[@]#"$here"}")',
            "  fi",
            "  return 0",
            "}",
            "complete -o default -F _udi udi",
        ]
    )


def zsh(commands: Mapping[str, Command]) -> str:
    """A function for zsh's completion system, with the help of each choice beside it."""
    found = list(words(commands))
    cases = []
    for each in found:
        options = [f"{spelling}:{text}" for spellings, text, _ in each.options for spelling in spellings]
        verbs = [*(f"{verb}:{text}" for verb, text in each.verbs.items()), *each.values]
        cases.append(
            f"    ({quote(each.path)}) options=({_list(options)}) valued=({_list(each.valued)})"
            f" verbs=({_list(verbs)}) references={'yes' if each.references else ''} ;;"
        )
    return "\n".join(
        [
            "#compdef udi",
            "_udi() {",
            "  local here=$words[2] references=",
            "  local -a options valued verbs",
            "  if (( CURRENT == 2 )); then",
            f"    verbs=({_list(f'{name}:{each.help}' for name, each in commands.items())})",
            "    _describe command verbs; return",
            "  fi",
            f'  (( CURRENT > 3 )) && case "$here $words[3]" in ({_nested(found)}) here="$here $words[3]" ;; esac',
            "  case $here in",
            *cases,
            "  esac",
            "  if (( ${words[(Ie)--]} && ${words[(Ie)--]} < CURRENT )); then _files; return; fi",
            "  if (( ${valued[(Ie)$words[CURRENT-1]]} )); then _files; return; fi",
            "  if [[ $words[CURRENT] == -* ]]; then _describe -o option options; return; fi",
            "  if (( $#verbs )); then _describe verb verbs; return; fi",
            f'  [[ -n $references ]] && verbs=(${{(f)"$({_LIST})"}}) && compadd -a verbs && return',
            "  _files",
            "}",
            "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }",
            "compdef _udi udi",
        ]
    )


def fish(commands: Mapping[str, Command]) -> str:
    """Fish's ``complete`` commands, with the help of each choice beside it."""
    found = list(words(commands))
    lines = [
        # Whether the words typed so far are this command, and this verb or none that has completions of its own.
        "function __udi_at",
        "  set -l typed (commandline -opc)",
        '  test "$typed[2]" = "$argv[1]"; or return 1',
        '  if set -q argv[2]; test "$typed[3]" = "$argv[2]"; return; end',
        f'  not contains -- "$typed[2] $typed[3]" {" ".join(_fish(each.path) for each in found if " " in each.path)}',
        "end",
        "function __udi_first; test (count (commandline -opc)) -eq 1; end",
        "function __udi_second; test (count (commandline -opc)) -eq 2; end",
        "complete -c udi -e",
        "complete -c udi -f",
    ]
    for name, command in commands.items():
        lines.append(f"complete -c udi -n __udi_first -a {_fish(name)} -d {_fish(command.help)}")
    for each in found:
        at = f"__udi_at {each.path}"
        for spellings, text, value in each.options:
            flags = " ".join(f"-l {flag[2:]}" if flag[:2] == "--" else f"-s {flag[1:]}" for flag in spellings)
            lines.append(f"complete -c udi -n {_fish(at)} {flags} {'-r -F ' if value else ''}-d {_fish(text)}")
        for verb, text in [*each.verbs.items(), *((value, "") for value in each.values)]:
            lines.append(f"complete -c udi -n {_fish(at + '; and __udi_second')} -a {_fish(verb)} -d {_fish(text)}")
        if each.references:
            lines.append(f"complete -c udi -n {_fish(at)} -a {_fish(f'({_LIST})')}")
    lines.append("complete -c udi -n '__udi_at run' -F")  # the command's own arguments
    return "\n".join(lines)


def _long(word: Word) -> list[str]:
    return [spelling for spellings, _, _ in word.options for spelling in spellings if spelling[:2] == "--"]


def _nested(found: Iterable[Word]) -> str:
    """The paths of verbs, as the pattern of a shell's case."""
    return "|".join(quote(each.path) for each in found if " " in each.path)


def _list(texts: Iterable[str]) -> str:
    return " ".join(map(quote, texts))


def _fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
