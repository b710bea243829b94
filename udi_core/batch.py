"""Batch scripts that run in an image: what their ``#UDI`` lines say, and how they are handed to Slurm.

A script says it in the comments at its beginning, as it does for sbatch::

    #!/bin/bash
    #SBATCH --nodes=2
    #UDI --image=docker:ghcr.io/lab/reco:2.1
    #UDI --volume=$SCRATCH/data:/data

``udi sbatch`` puts ``udi batch`` into the first line, so that Slurm starts that on the node, and appends one comment
with what was found at submission: which image for which kind of node, and the script's own interpreter.  All other
lines stay where they are, so line numbers in messages are the user's.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from udi_core.errors import UsageError

#: Variable by which ``udi step`` learns the image of its job.
VARIABLE = "UDI_JOB"

_MARK = "#UDI "
_RECORD = "#UDI-JOB "
# linux/binfmts.h: what is longer than BINPRM_BUF_SIZE is cut off.
_LONGEST = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What was found at submission, and what steps are started with.

    Attributes:
        images: node kind -> digest.
        references: node kind -> reference, as the user gave it.
        store: the image store.
        interpreter: of the script, () for the image's shell.
        options: words of the ``#UDI`` lines and of the command line, without ``--image``.
        setup: shell lines to be sourced before a step's program.
        by: who asks, as the run record names it.
    """

    images: Mapping[str, str]
    references: Mapping[str, str]
    store: str
    interpreter: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())
    setup: str = ""
    by: str = "batch"

    def encode(self) -> str:
        """As one line of ASCII; :meth:`decode` is the inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Job:
        """The job of :meth:`encode`'s text.

        Raises:
            UsageError: it is not such a text.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            found["interpreter"], found["options"] = tuple(found["interpreter"]), tuple(found["options"])
            return cls(**found)
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError("The record of the job is damaged", str(error), "Submit the script again.") from error


def directives(script: str) -> list[str]:
    """The words of a script's ``#UDI`` lines; as with ``#SBATCH``, they end with the first line that is no comment.

    Raises:
        UsageError: quotes that are not closed; the details give the line.
    """
    words: list[str] = []
    for number, line in enumerate(script.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith(_MARK):
            try:
                words += [os.path.expandvars(word) for word in shlex.split(line[len(_MARK) :], comments=True)]
            except ValueError as error:
                raise UsageError("A #UDI line is malformed", f"line {number}: {line}: {error}") from error
    return words


def interpreter(script: str) -> tuple[str, ...]:
    """The interpreter of a script's first line and its argument, which the kernel does not split; () if it has none.

    Raises:
        UsageError: no script at all.
    """
    first = script.partition("\n")[0]
    if not first.startswith("#!"):
        raise UsageError(
            "This is no script", "Its first line does not begin with #!", "sbatch needs #!/bin/bash there."
        )
    words = first[2:].strip().split(None, 1)
    return () if _is_ours(first) else tuple(words)


def prepared(script: str, job: Job, program: tuple[str, ...]) -> str:
    """The script as it is handed to sbatch; ``program`` is the argv that starts ``udi`` on a node.

    Raises:
        UsageError: the program's path is too long for a first line.
    """
    first, _, rest = script.partition("\n")
    if not _is_ours(first):
        first = "#!/usr/bin/env -S " + " ".join(map(_quoted, (*program, "batch")))
        if len(first) > _LONGEST:
            raise UsageError(
                "UDI is installed at too long a path",
                f"{program[0]}: the kernel reads {_LONGEST} characters of a script's first line.",
                "Write #!/usr/bin/env -S udi batch there yourself, and have udi in PATH.",
            )
    end = "" if rest.endswith("\n") or not rest else "\n"
    return f"{first}\n{rest}{end}{_RECORD}{job.encode()}\n"


def recorded(script: str) -> Job | None:
    """What ``udi sbatch`` appended, or None if the script was handed to sbatch as it is."""
    last = script.rstrip("\n").rpartition("\n")[2]
    return Job.decode(last[len(_RECORD) :]) if last.startswith(_RECORD) else None


def _is_ours(first: str) -> bool:
    words = first[2:].split()
    return bool(words) and words[-1] == "batch" and any(os.path.basename(word) in ("udi", "udi_core") for word in words)


def _quoted(word: str) -> str:
    # env -S knows double quotes, backslash and dollar, and no single quotes inside of which all is plain (env(1)).
    if all(letter.isalnum() or letter in "/._+-,:@=%" for letter in word):
        return word
    return '"' + "".join("\\" + letter if letter in '"\\$' else letter for letter in word) + '"'
