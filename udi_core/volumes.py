"""Volumes: what of the host a task sees, and where."""

from __future__ import annotations

import os

from udi_core.errors import UsageError
from udi_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A file or directory of the host, shown in the image.

    Attributes:
        source: absolute path on the host; a directory, a file or a socket.
        target: absolute, normal path in the image.
        read_only: whether the task may only read there.
    """

    source: str
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str, *, cwd: str | None = None) -> Volume:
        r"""Parse ``SRC[:DST[:ro|rw]]``.  A colon in a name is written ``\:``; a relative SRC is taken from ``cwd``.

        Without DST the volume appears where it is on the host.

        Raises:
            UsageError: it is malformed, or DST is not an absolute path.
        """

        def wrong(details: str) -> UsageError:
            return UsageError(f"{text!r} is not a volume", details, "Write SRC:DST or SRC:DST:ro, DST being absolute.")

        if "\0" in text:
            raise wrong("A path cannot hold a NUL byte.")
        parts = [part.replace("\0", ":") for part in text.replace("\\:", "\0").split(":")]
        if not 1 <= len(parts) <= 3 or not all(parts):
            raise wrong("It needs one to three parts, none of them empty.")
        mode = parts[2] if len(parts) == 3 else "rw"
        if mode not in ("ro", "rw"):
            raise wrong(f"The mode {mode!r} is neither ro nor rw.")
        source = os.path.expanduser(parts[0])
        if not source.startswith("/"):
            try:
                source = os.path.join(cwd or os.getcwd(), source)
            except FileNotFoundError:
                raise wrong("It is relative, and the current directory does not exist any more.") from None
        source = os.path.normpath(source)
        target = parts[1] if len(parts) > 1 else source
        if not target.startswith("/"):
            raise wrong(f"The target {target!r} is not an absolute path.")
        target = "/" + os.path.normpath(target).lstrip("/")
        if target == "/":
            raise wrong("Nothing can be mounted over the image's own root.")
        return cls(source=source, target=target, read_only=mode == "ro")

    def __str__(self) -> str:
        """``parse(str(volume)) == volume``."""
        paths = (path.replace(":", "\\:") for path in (self.source, self.target))
        return ":".join(paths) + (":ro" if self.read_only else "")
