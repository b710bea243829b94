"""Which images a workflow needs: read from the Snakefile's text, and asked of Snakemake itself.

The text is enough for literal references and needs no Snakemake.  References that are computed (``config[…]``, a
function, a wildcard) only Snakemake can tell: :func:`ask_snakemake` lets it plan a dry run and listens to what it would
pull.
"""

from __future__ import annotations

import ast
import io
import os
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from udi_core import ToolFailed, UsageError

_IMAGE_DIRECTIVES = ("container", "containerized", "singularity")
_FILE_DIRECTIVES = ("include", "snakefile")
_STANDARD_PLACES = ("Snakefile", "snakefile", "workflow/Snakefile", "workflow/snakefile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One directive.  ``image`` is None where the text does not tell, and ``text`` is what stands there."""

    image: str | None
    text: str
    file: str
    line: int


def default_snakefile(directory: str) -> str:
    """The Snakefile that Snakemake would take.

    Raises:
        UsageError: there is none in the places where Snakemake looks.
    """
    for place in _STANDARD_PLACES:
        path = os.path.join(directory, place)
        if os.path.isfile(path):
            return path
    raise UsageError(
        f"There is no Snakefile in {directory}",
        f"Looked for {', '.join(_STANDARD_PLACES)}.",
        "Go to the workflow's directory, or name the Snakefile.",
    )


def scan(snakefile: str) -> list[Found]:
    """Every image directive of a Snakefile and of the local files that it includes, in the order of the text.

    Raises:
        UsageError: the Snakefile itself cannot be read.  An include that cannot be read is a :class:`Found` without
            an image.
    """
    try:
        with open(snakefile, encoding="utf-8") as file:
            source = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The Snakefile {snakefile} cannot be read", str(error), "Check its name.") from error
    return list(_scan(source, os.path.abspath(snakefile), set()))


def _scan(source: str, path: str, visited: set[str]) -> Iterator[Found]:
    visited.add(path)
    for name, text, line in directives(source):
        value = _literal(text)
        if name in _IMAGE_DIRECTIVES:
            if text.strip() != "None":
                known = value is not None and "{" not in value
                yield Found(image=value if known else None, text=text, file=path, line=line)
            continue
        included = os.path.join(os.path.dirname(path), value) if value and "://" not in value else None
        if included is None:
            yield Found(image=None, text=f"{name}: {text}", file=path, line=line)
            continue
        included = os.path.normpath(included)
        if included in visited:
            continue
        try:
            with open(included, encoding="utf-8") as file:
                inner = file.read()
        except (OSError, UnicodeDecodeError):
            yield Found(image=None, text=f"{name}: {text}", file=path, line=line)
            continue
        yield from _scan(inner, included, visited)


def directives(source: str) -> Iterator[tuple[str, str, int]]:
    """(name, argument as text, line) of the directives that name images or further files."""
    wanted = (*_IMAGE_DIRECTIVES, *_FILE_DIRECTIVES)
    tokens = list(_tokens(source))
    fresh, position = True, 0
    while position + 1 < len(tokens):
        token = tokens[position]
        if fresh and token.string in wanted and tokens[position + 1].string == ":":
            text, position = _argument(tokens, position + 2)
            yield token.string, text, token.start[0]
            continue
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            fresh = True
        elif token.type not in (tokenize.NL, tokenize.COMMENT):
            fresh = False
        position += 1


def _argument(tokens: Sequence[tokenize.TokenInfo], position: int) -> tuple[str, int]:
    """The rest of a directive's line and the block indented below it; and where the next directive begins."""
    parts: list[str] = []
    depth = 0
    while position < len(tokens):
        token = tokens[position]
        following = tokens[position + 1].type if position + 1 < len(tokens) else tokenize.ENDMARKER
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        elif token.type not in (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER):
            parts.append(token.string)
        position += 1
        if (token.type == tokenize.NEWLINE and parts and depth == 0 and following != tokenize.INDENT) or depth < 0:
            break
        if token.type == tokenize.DEDENT and depth == 0:
            break
    return " ".join(parts).rstrip(" ,"), position


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    # A Snakefile may hold what Python's tokenizer refuses (a stray dedent in a docstring): keep what came before.
    try:
        yield from tokenize.generate_tokens(io.StringIO(source).readline)
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return


def _literal(text: str) -> str | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError):
        return None
    return value if isinstance(value, str) else None


def ask_snakemake(snakefile: str, directory: str, arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """Images of all jobs that Snakemake would plan, computed references included.  Starts one Python; runs no job.

    ``arguments`` are further ones of Snakemake (targets, ``--configfile``).

    Raises:
        ToolFailed: Snakemake is not installed, or cannot plan the workflow (an input file is missing, for example).
    """
    from udi_core import run

    done = run(
        [sys.executable, "-m", "udi_snakemake.plan", "--snakefile", os.path.abspath(snakefile), *arguments],
        cwd=directory,
        check=False,
    )
    marked = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith(PLAN_MARK)]
    if not marked or done.returncode:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise ToolFailed("Snakemake could not plan the workflow", "\n".join(lines[-8:]))
    return tuple(dict.fromkeys(image for line in marked for image in _images(line)))


#: Begins the one line of :mod:`udi_snakemake.plan` that is meant for us, between whatever a Snakefile prints.
PLAN_MARK = "udi-images "


def _images(line: str) -> list[str]:
    import json

    return [str(image) for image in json.loads(line.removeprefix(PLAN_MARK))]
