"""``udi.lock``: the digests that a workflow's images had when it was published.

The file lies beside the workflow and belongs into its repository.  Where it names a reference, ``pull`` and ``exec``
run that digest and nothing else, whatever the tag names by then and whatever a pointer file says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from udi_core import ConfigError

FILE_NAME = "udi.lock"
_KEY = "udi-lock"
_VERSION = 1
#: Where a run looks for its lock file, from its working directory.  The second is Snakemake's recommended layout.
_PLACES = (FILE_NAME, os.path.join("workflow", FILE_NAME))


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedImage:
    """What one reference named.

    Attributes:
        digest: of what the tag named: an index where the image has several platforms.  This is what is pulled.
        images: platform -> digest of its manifest, for the platforms that were seen.
    """

    digest: str
    images: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """All locked references, by canonical form.  ``path`` is that of the file, for messages."""

    path: str
    images: dict[str, LockedImage] = field(default_factory=dict)


def find(directory: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The lock file that a run in ``directory`` has to honour; ``UDI_LOCK`` names another, or none if empty."""
    if "UDI_LOCK" in environ:
        return environ["UDI_LOCK"] or None
    return next((path for path in places(directory, environ) if os.path.isfile(path)), None)


def places(directory: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where :func:`find` looks."""
    if "UDI_LOCK" in environ:
        return [environ["UDI_LOCK"]] if environ["UDI_LOCK"] else []
    return [os.path.join(directory, place) for place in _PLACES]


def load(path: str) -> Lock:
    """Read a lock file.

    Raises:
        ConfigError: it is absent, damaged, or of a later version.
    """
    hint = "Write it anew: delete it, then udi lock"
    try:
        with open(path, "rb") as file:
            document = json.load(file)
        if document[_KEY] != _VERSION:
            raise ConfigError(
                f"{path} is a lock file of version {document[_KEY]}", f"This UDI reads version {_VERSION}."
            )
        images = {
            reference: LockedImage(digest=entry["digest"], images=dict(entry.get("images", {})))
            for reference, entry in document["images"].items()
        }
    except (OSError, ValueError) as error:
        raise ConfigError(f"The lock file {path} cannot be read", str(error), hint) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a lock file of UDI", repr(error), hint) from error
    return Lock(path=path, images=images)


def dump(lock: Lock) -> None:
    """Write ``lock.path``.  Atomic.  Sorted, one image to a line, so that differences read well in a review."""
    document = {
        _KEY: _VERSION,
        "images": {
            reference: {"digest": image.digest, "images": dict(sorted(image.images.items()))}
            for reference, image in sorted(lock.images.items())
        },
    }
    temporary = f"{lock.path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w") as file:
            file.write(json.dumps(document, indent=2) + "\n")
        os.replace(temporary, lock.path)
    except OSError as error:
        raise ConfigError(
            f"The lock file {lock.path} cannot be written",
            error.strerror or str(error),
            "Name another: udi lock --output FILE",
        ) from error
