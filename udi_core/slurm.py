"""Slurm's command lines: where the options of srun or sbatch end and the program begins.

Slurm has a hundred options, and each release adds some.  Which of them are followed by a value, its own ``--help``
says, and that is what is read here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# "  -N, --nodes=N", "      --mem=MB", "  -B  --extra-node-info=S[:C[:T]]", "  -I, --immediate[=secs]"
_LINE = re.compile(r"^\s{1,8}(?:-(?P<short>\w),?\s+)?--(?P<long>[a-z][a-z0-9-]*)(?P<value>\[=|=)?", re.MULTILINE)
# What the help of some releases shows without its value.
_UNSHOWN = frozenset({"container", "container-id"})


def options_with_value(help_text: str) -> dict[str, bool]:
    """Each option's name (``N``, ``nodes``) and whether a value must follow it, from what ``--help`` prints."""
    found: dict[str, bool] = {}
    for match in _LINE.finditer(help_text):
        needs = match["value"] == "=" or match["long"] in _UNSHOWN
        for name in filter(None, (match["short"], match["long"])):
            found[name] = found.get(name, False) or needs
    return found


def program_at(arguments: Sequence[str], options: dict[str, bool]) -> int:
    """The index of the first word that is neither an option nor an option's value; the length if there is none.

    As getopt_long(3) reads them: ``-N2``, ``-N 2``, ``-vN 2``, ``--nodes=2``, ``--nodes 2``, ``--nod 2``, ``--``.
    """
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--":
            return index + 1
        if not word.startswith("-") or word == "-":
            return index
        index += 2 if _value_follows(word, options) else 1
    return len(arguments)


def _value_follows(word: str, options: dict[str, bool]) -> bool:
    if word.startswith("--"):
        name = word[2:]
        if "=" in name:
            return False
        # A name may be cut short where that leaves no doubt.
        meant = [name] if name in options else [each for each in options if each.startswith(name)]
        return len(meant) == 1 and options[meant[0]]
    for place, letter in enumerate(word[1:], 2):
        if options.get(letter):
            return place == len(word)
    return False
