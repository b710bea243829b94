"""squashfuse_ll in a user and mount namespace of its own, which tasks join: needs no setuid program."""

from __future__ import annotations

import contextlib
import os
import signal

from udi_core.backends import Held, Place
from udi_core.backends.fuse import start_holder


def mount(squashfs: str, place: Place) -> Held:
    """See :class:`udi_core.backends.Backend`."""
    return start_holder("namespace", squashfs, place)


def unmount(held: Held, place: Place) -> None:
    """See :class:`udi_core.backends.Backend`."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(held.pid, signal.SIGTERM)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(place.root)
