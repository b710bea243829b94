"""The command line ``udi``: arguments in, library calls, text or JSON out; the only place that ends the process."""

from __future__ import annotations

import errno
import os
import sys
import time

from udi_core.errors import OutputLost, UdiError

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence

#: When this command was given, as nearly as Python can tell.
BEGAN = time.time()

# Read by hand, since a task waits for them.
_HOT = ("run", "shell")
# Their exit status is that of what they run.
_RUNNERS = (*_HOT, "batch", "step")


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are printed, never raised."""
    _open_streams()
    command = next((word for word in argv if not word.startswith("-")), "")
    json_output = "--json" in argv and command not in _RUNNERS
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
        return status
    except UdiError as error:
        _report(error, json_output)
        # docker-run(1): 125 is the launcher's own failure, so that a program's status can be told from ours.
        if command in _RUNNERS and error.exit_code not in (126, 127):
            return 125
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`udi images | head`).
        _silence(1)
        return 141
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            _silence(1)
            _report(OutputLost("The output cannot be written", error.strerror or str(error), "Make room."), False)
            return 125 if command in _RUNNERS else OutputLost.exit_code
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


# What write(2) says when there is no room; the store's own files are reported by the store.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _dispatch(argv: Sequence[str]) -> int:
    if argv and argv[0] in _HOT:
        from udi_core.cli.arguments import read

        arguments = read(argv[0], argv[1:])
        if arguments is not None:
            from udi_core.cli import run

            return run.run(arguments) if argv[0] == "run" else run.shell(arguments)
    from udi_core.cli.parser import dispatch

    return dispatch(argv)


def _open_streams() -> None:
    """Open what the caller closed (``>&-``): else a lock file would become the task's standard output."""
    try:
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # a machine without /dev/null has other troubles
    if fd > 2:
        os.close(fd)
        return
    os.set_inheritable(fd, True)
    stream = open(fd, "r" if fd == 0 else "w", closefd=False)
    setattr(sys, ("stdin", "stdout", "stderr")[fd], stream)
    _open_streams()


def printable(text: str) -> str:
    """Text with everything escaped that a terminal would obey, or an encoding refuse: some of it is an image's."""
    return "".join([each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text])


def _silence(fd: int) -> None:
    """Send what is still buffered nowhere: Python writes it at exit, and would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _report(error: UdiError, json_output: bool) -> None:
    if json_output:
        import json

        fields = {"brief": error.brief, "details": error.details, "hint": error.hint}
        document = {"error": {"kind": type(error).__name__, "exit_code": error.exit_code, **fields}}
        print(json.dumps(document, indent=1), flush=True)
        return
    bold, plain = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    lines = [f"{bold}udi: {printable(error.brief)}{plain}"]
    for part in (error.details, error.hint):
        lines += [f"     {printable(line)}" for line in part.splitlines()]
    try:
        sys.stdout.flush()
        print("\n".join(lines), file=sys.stderr, flush=True)
    except OSError:  # the exit code still says it
        for fd in (1, 2):
            _silence(fd)
