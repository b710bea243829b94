"""A lock across nodes, made of plain files: one holder, and a dead holder is taken over.

flock(2) does not reach across nodes on every NFS and Lustre mount, and a lock that a killed process leaves behind
must not last for ever.  So a lease is a file that its holder rewrites every few seconds (the heartbeat).  Others
judge it by whether it *changes*, on their own clock, because the clocks of two nodes cannot be compared.

Creating is link(2) of a private file to the lease's name, which is atomic on NFS too (open(2), O_EXCL).  Taking over
is rename(2) of the dead lease to a name that contains its contents' hash: of several that try, one succeeds.
A holder that was only asleep finds at its next heartbeat, and before it publishes, that the lease is no longer its
own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from udi_core.errors import LeaseLost

BEAT = 2.0  # seconds between heartbeats
PATIENCE = 12.0  # seconds without a change after which a holder counts as dead


class Lease:
    """A held lease; a context manager that gives it up.

    Its heartbeat is a thread of this process: it stops when the process is killed or stopped.
    """

    def __init__(self, path: str, token: str) -> None:
        self._path, self._token = path, token
        self._note = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="udi-lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if self._is_mine():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def tell(self, note: str) -> None:
        """What those who wait may show; it goes out with the next heartbeat."""
        self._note = note

    def check(self) -> None:
        """Raise :class:`LeaseLost` if the lease is no longer this holder's."""
        if not self._is_mine():
            raise LeaseLost(
                "Another process took this work over",
                f"{self._path}: its heartbeat had stopped for more than {PATIENCE:.0f} seconds.",
                "Try again: the image may be there already.",
            )

    def _is_mine(self) -> bool:
        return read(self._path).get("token") == self._token

    def _beat(self) -> None:
        count = 0
        while not self._done.wait(BEAT):
            count += 1
            # A lease that was taken over must not be overwritten; the small gap between looking and writing is
            # closed by check(), which the holder calls after its last write.
            with contextlib.suppress(OSError):
                if not self._is_mine():
                    return
                _replace(self._path, _contents(self._token, count, self._note))


def acquire(path: str) -> Lease | None:
    """Take a lease if it is free; None if somebody holds it.

    Raises:
        OSError: no file can be made there, or no hard link.
    """
    token = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}:{time.time_ns()}"
    private = f"{path}.{hashlib.sha256(token.encode()).hexdigest()[:16]}"
    try:
        with open(private, "w") as file:
            file.write(_contents(token, 0, ""))
        os.link(private, path)
    except FileExistsError:
        # The reply of an NFS server may be lost and the call repeated: a second link tells (open(2), NOTES).
        if os.stat(private).st_nlink != 2:
            return None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(private)
    return Lease(path, token)


def wait(
    path: str,
    done: Callable[[], bool],
    show: Callable[[str, str], None],
    *,
    patience: float = PATIENCE,
    poll: float = 0.1,
) -> Lease | None:
    """Take a lease, waiting for its holder; None as soon as ``done()`` says that there is nothing left to do.

    ``show`` is called with the holder (``node, pid N``) and its note while waiting.

    Raises:
        OSError: as :func:`acquire`.
    """
    last: bytes | None = None
    since = time.monotonic()
    while True:
        if done():
            return None
        lease = acquire(path)
        if lease is not None:
            return lease
        seen = _raw(path)
        now = time.monotonic()
        if seen != last:
            last, since = seen, now
            document = _parse(seen or b"")
            if document:
                node, pid = [*str(document.get("token", "")).split(":"), "?"][:2]
                show(f"{node}, pid {pid}", str(document.get("note", "")))
        elif seen is not None and now - since > patience:  # empty, too: a machine that crashes leaves such files
            _take_over(path, seen)
            continue
        time.sleep(poll)
        poll = min(1.0, poll * 1.3)


def _take_over(path: str, dead: bytes) -> None:
    """Move a dead lease away, if it is still the one that was watched."""
    grave = f"{path}.{hashlib.sha256(dead).hexdigest()[:16]}.dead"
    if _raw(path) != dead:
        return
    with contextlib.suppress(OSError):
        os.rename(path, grave)
        if _raw(grave) != dead:
            # It came alive, or was taken, between looking and moving: put it back if its place is free.
            with contextlib.suppress(OSError):
                os.link(grave, path)
        os.unlink(grave)


def read(path: str) -> dict[str, object]:
    """What a lease file says; empty if there is none or it is being replaced."""
    return _parse(_raw(path) or b"")


def _raw(path: str) -> bytes | None:
    """What is in a lease file; None if there is none or it is being replaced.

    Raises:
        PermissionError: nobody could tell whether its holder lives.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except PermissionError:
        raise
    except OSError:
        return None


def _parse(raw: bytes) -> dict[str, object]:
    try:
        document = json.loads(raw)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _contents(token: str, count: int, note: str) -> str:
    return json.dumps({"token": token, "beat": count, "note": note})


def _replace(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.beat"
    with open(temporary, "w") as file:
        file.write(text)
    os.replace(temporary, path)
