"""The front behind ``apptainer`` and ``singularity``: one request from the command line, carried out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from udi_core import LaunchError, UdiError
from udi_snakemake.activation import STAND
from udi_snakemake.arguments import ACTIONS, Action, Help, Inspect, Version, parse
from udi_snakemake.warm import take_question

#: docker-run(1): UDI's own failure, told apart from the program's status.
_OWN_FAILURE = 125


def _forget_locale() -> None:
    """Where the locale is C, Python sets LC_CTYPE for itself and its children (PEP 538); a task is not our child."""
    if os.environ.get("LC_CTYPE") == "C.UTF-8":
        with open("/proc/self/environ", "rb") as file:
            if b"LC_CTYPE" not in [entry.partition(b"=")[0] for entry in file.read().split(b"\0")]:
                del os.environ["LC_CTYPE"]


def main(program: str, argv: Sequence[str]) -> int:
    """Carry out one command line; returns the exit status, unless the process has become the program in the image."""
    began = time.time()
    acting = bool(set(ACTIONS) & set(argv))
    question, stands = take_question(), bool(os.environ.pop(STAND, ""))
    _forget_locale()
    try:
        request = parse(argv, os.environ, program)
        acting = isinstance(request, Action)
        if isinstance(request, Action):
            from udi_snakemake.launching import launch

            # What would start the same with another command.
            again = [program, *argv[: len(argv) - len(request.command)]]
            return launch(request, question, began, again, stands=stands)
        elif isinstance(request, Help):
            from udi_snakemake.help import text

            sys.stdout.write(text(program, request.topic))
        elif isinstance(request, Version):
            print(f"{program} version 1.4.5+udi" if program == "apptainer" else f"{program} version 3.11.5+udi")
        elif isinstance(request, Inspect):
            from udi_snakemake.inspecting import inspect

            inspect(request)
        else:
            from udi_snakemake.pulling import pull

            pull(request)
    except UdiError as error:
        for line in str(error).splitlines():
            print(f"{program} (UDI): {line}", file=sys.stderr)
        return _OWN_FAILURE if acting and not isinstance(error, LaunchError) else error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("UDI_DEBUG"):
            raise
        print(f"{program} (UDI): a fault of UDI's own: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"{program} (UDI): please report it, with what UDI_DEBUG=1 shows", file=sys.stderr)
        return _OWN_FAILURE if acting else UdiError.exit_code
    return 0
