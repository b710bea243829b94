"""Progress events: what long work reports, without knowing who shows it."""

from __future__ import annotations

from udi_core.values import dataclass

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    Phase = Literal["resolve", "wait", "download", "flatten", "publish", "mount", "copy"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One event.  Events of one ``(phase, item)`` come in order; ``done`` never decreases.

    Attributes:
        phase: which step this is.
        item: what is worked on (a short digest, an image reference, a node).
        done: amount finished so far, in ``unit``.
        total: amount at the end, or None where it cannot be known; ``done == total`` ends the item.
        unit: ``"B"`` for bytes, else a plural noun ("entries", "images").
        note: free text for a person ("held by nid00012, pid 4711").
    """

    phase: Phase
    item: str
    done: int = 0
    total: int | None = None
    unit: str = "B"
    note: str = ""


if TYPE_CHECKING:
    #: Called from the thread that does the work, possibly many times a second; must not raise or block.
    ProgressSink = Callable[[Progress], None]
else:
    ProgressSink = object


def ignore(event: Progress) -> None:
    """The sink for callers that show nothing."""
