"""Pointer files: what ``pull`` leaves where the real program would leave an image.

A pointer is a few hundred bytes of JSON that name one image by its digest, or one for each kind of node.  All jobs of
all runs that share a prefix read the same pointer, so they run the same image, whatever the tag names by then.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from udi_core import CorruptImage, StoreError

_KEY = "udi-pointer"
_VERSION = 1
_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """One image, named for good.

    Attributes:
        reference: canonical form of what was asked for, tag included.
        digest: of the platform's manifest: the image's name in the store.
        store: root of the store that held it when this was written.
        images: kind of node -> digest, where nodes of several kinds have an image each; ``digest`` is one of these.
        index: digest of what names them all; "" without ``images``.
    """

    reference: str
    digest: str
    store: str
    images: Mapping[str, str] = field(default_factory=dict)
    index: str = ""

    def for_this_node(self) -> str:
        """The digest of what this node runs.

        Raises:
            UsageError: there are images for other kinds of nodes only.
        """
        if not self.images:
            return self.digest
        from udi_core import for_this_node

        return for_this_node(self.images, self.reference)


def read(path: str) -> Pointer | None:
    """The pointer in a file; None if the file is something else, or is not there.

    Raises:
        CorruptImage: a pointer of a later UDI, or a damaged one.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            if not head.startswith(b'{"udi-pointer"'):
                return None
            raw = head + file.read(_LONGEST)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    try:
        document = json.loads(raw)
        if document[_KEY] != _VERSION:
            raise CorruptImage(
                f"{path} is a pointer file of version {document[_KEY]}",
                f"This UDI reads version {_VERSION}.",
                "Update UDI, or remove the file: it is written again by the next run.",
            )
        names = ("reference", "digest", "store")
        return Pointer(
            **{name: document[name] for name in names},
            images=dict(document.get("images", {})),
            index=document.get("index", ""),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptImage(
            f"{path} is a damaged pointer file", repr(error), "Remove it: it is written again by the next run."
        ) from error


def write(path: str, pointer: Pointer, *, replace: bool = False) -> Pointer:
    """Leave a pointer at ``path``, and return the one that is there then.

    Atomic: readers see no file or a whole one.  Without ``replace`` the first of several writers wins and the others
    get its pointer back, on NFS too, because link(2) fails where the name exists.

    Raises:
        StoreError: the directory cannot be written, or the file there is not a pointer.
    """
    directory = os.path.dirname(os.path.abspath(path))
    document = {
        _KEY: _VERSION,
        "reference": pointer.reference,
        "digest": pointer.digest,
        "store": pointer.store,
        **({"images": dict(pointer.images), "index": pointer.index} if pointer.images else {}),
        "note": "This file names an image of UDI; it is not the image. `apptainer inspect` of UDI shows more.",
    }
    try:
        os.makedirs(directory, exist_ok=True)
        temporary = os.path.join(directory, f".udi-{os.uname().nodename}-{os.getpid()}.tmp")
        try:
            with open(temporary, "w") as file:
                file.write(json.dumps(document, indent=None) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(temporary, path)
                return pointer
            try:
                os.link(temporary, path)
                return pointer
            except FileExistsError:
                existing = read(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        raise StoreError(
            f"The pointer file {path} cannot be written",
            str(error),
            "Choose another prefix: snakemake --apptainer-prefix DIR",
        ) from error
    if existing is None:
        raise StoreError(
            f"{path} exists and is no pointer file of UDI",
            "A real apptainer may have pulled it.",
            "Use it as it is, remove it, or pull with --force.",
        )
    return existing
