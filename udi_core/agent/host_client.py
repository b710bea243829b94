"""The in-image side of :mod:`udi_core.host_calls`: asks the process outside to run the program it is named after.

It runs on whatever Python the image has (3.6 or newer) and imports the standard library only.

Request: ``>I`` length, sent together with the descriptors 0, 1 and 2 (unix(7), SCM_RIGHTS), then that many bytes of
JSON: ``{"program", "argv", "cwd", "env"}``.  After it, every byte is the number of a signal to pass on.
Answer, when the program has ended: JSON, ``{"exit": status}`` or ``{"signal": number}``, with ``"said"`` if there is
something to tell the user.  If this side goes away, the program is ended.
"""

import json
import os
import signal
import socket
import struct
import sys

TYPE_CHECKING = False  # importing typing costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_FORWARDED = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CONT", "WINCH")


def main() -> int:
    program = os.path.basename(sys.argv[0])
    try:
        result = _ask(program, sys.argv[1:], os.path.dirname(os.path.realpath(sys.argv[0])))
    except (EOFError, OSError) as error:
        sys.stderr.write(
            "udi: %s cannot be run outside of the image: its host does not answer: %s\n" % (program, error)
        )
        return 125
    if result.get("said"):
        sys.stderr.write(result["said"].rstrip("\n") + "\n")
        sys.stderr.flush()
    if "signal" in result:
        number = result["signal"]
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return int(128 + number)
    return int(result["exit"])


def _ask(program: str, argv: "list[str]", directory: str) -> "dict[str, Any]":
    """Have the program run to its end, and pass signals on meanwhile; EOFError or OSError if the host has gone."""
    # Before the socket, which would take the number of a stream that is closed.
    streams = struct.pack("3i", *(_open(number) for number in (0, 1, 2)))
    host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    host.connect(os.path.join(directory, "socket"))
    request = {"program": program, "argv": argv, "cwd": os.getcwd(), "env": dict(os.environ)}
    body = json.dumps(request).encode()
    host.sendmsg([struct.pack(">I", len(body))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    host.sendall(body)
    for name in _FORWARDED:
        number = getattr(signal, "SIG" + name)
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: host.sendall(bytes([number])))
    answer = b""
    while True:
        data = host.recv(65536)
        answer += data
        if not data:
            break
    if not answer:
        raise EOFError("it has gone")
    return json.loads(answer.decode())  # type: ignore[no-any-return]


def _open(number: int) -> int:
    """A standard stream, or the null device in the place of one that is closed."""
    try:
        os.fstat(number)
    except OSError:
        return os.open(os.devnull, os.O_RDWR)
    return number


if __name__ == "__main__":
    sys.exit(main())
