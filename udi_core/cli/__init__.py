"""The command line ``udi``: arguments in, library calls, text or JSON out; the only place that ends the process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from udi_core.errors import UdiError

_RUNNERS = ("run", "shell")


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are printed, never raised."""
    command = next((word for word in argv if not word.startswith("-")), "")
    json_output = "--json" in argv and command not in _RUNNERS
    try:
        from udi_core.cli.parser import dispatch

        return dispatch(argv)
    except UdiError as error:
        _report(error, json_output)
        # docker-run(1): 125 is the launcher's own failure, so that a program's status can be told from ours.
        if command in _RUNNERS and error.exit_code not in (126, 127):
            return 125
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`udi images | head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if os.environ.get("UDI_DEBUG"):
            raise
        _report(
            UdiError(
                "UDI failed in a way that it should not",
                f"{type(error).__name__}: {error}",
                "Please report it, with what UDI_DEBUG=1 shows.",
            ),
            json_output,
        )
        return 125 if command in _RUNNERS else UdiError.exit_code


def _report(error: UdiError, json_output: bool) -> None:
    if json_output:
        import json

        fields = {"brief": error.brief, "details": error.details, "hint": error.hint}
        document = {"error": {"kind": type(error).__name__, "exit_code": error.exit_code, **fields}}
        print(json.dumps(document, indent=1), flush=True)
        return
    sys.stdout.flush()
    bold, plain = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    lines = [f"{bold}udi: {error.brief}{plain}"]
    for part in (error.details, error.hint):
        lines += [f"     {line}" for line in part.splitlines()]
    print("\n".join(lines), file=sys.stderr, flush=True)
