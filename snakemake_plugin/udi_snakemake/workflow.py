"""A whole workflow's images: found, locked, fetched and mounted before the first job starts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from udi_core import (
    Config,
    ImageReference,
    ImageStore,
    NodeMounts,
    ProgressSink,
    StoredImage,
    ToolFailed,
    ignore,
    open_source,
)
from udi_core import resolve as resolve_in_source
from udi_snakemake import images, lock, pointer, pulling
from udi_snakemake.discovery import Found, ask_snakemake, scan
from udi_snakemake.lock import Lock, LockedImage
from udi_snakemake.pointer import Pointer
from udi_snakemake.resolving import credentials, front_config, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowImages:
    """What a workflow's rules name.

    Attributes:
        images: as the Snakefile writes them, each once.
        unknown: directives whose image could not be told.
        excuse: why Snakemake could not be asked, or "".
    """

    images: tuple[str, ...]
    unknown: tuple[Found, ...] = ()
    excuse: str = ""


def find_images(snakefile: str, directory: str, arguments: Sequence[str] = ()) -> WorkflowImages:
    """All images of a workflow: those that the text names, and those that Snakemake works out for the planned jobs.

    Raises:
        UsageError: the Snakefile cannot be read.
    """
    found = scan(snakefile)
    literal = [each.image for each in found if each.image is not None]
    unknown = tuple(each for each in found if each.image is None)
    excuse, planned = "", tuple[str, ...]()
    try:
        planned = ask_snakemake(snakefile, directory, arguments)
        unknown = ()
    except ToolFailed as error:
        excuse = error.details or error.brief
    return WorkflowImages(images=tuple(dict.fromkeys([*literal, *planned])), unknown=unknown, excuse=excuse)


def prefix_of(directory: str, prefix: str | None) -> str:
    """Where Snakemake keeps the images of a workflow that runs in ``directory``."""
    return os.path.join(directory, prefix) if prefix else os.path.join(directory, ".snakemake", "singularity")


def pointer_path(prefix: str, image: str) -> str:
    """The file that Snakemake looks for: the MD5 digest of the reference as the Snakefile writes it."""
    return os.path.join(prefix, hashlib.md5(image.encode(), usedforsecurity=False).hexdigest() + ".simg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """An image that is ready; ``backend`` is how it is mounted on this node, "" if it is not."""

    image: str
    stored: StoredImage
    backend: str = ""


def prefetch(
    names: Iterable[str], directory: str, prefix: str, *, mount: bool = True, progress: ProgressSink = ignore
) -> list[Fetched]:
    """Pull every image, leave Snakemake the pointer files that it looks for, and mount the images on this node.

    Idempotent; honours the lock file of ``directory``.

    Raises:
        UdiError: of the first image that cannot be had.
    """
    done: list[Fetched] = []
    for name in names:
        named = images.understand(name, directory)
        if isinstance(named, ImageReference) and named.transport == "docker":
            written = pulling.fetch(name, pointer_path(prefix, name), run_directory=directory, progress=progress)
            config = front_config(os.environ)
            stored = ImageStore(written.store).image(written.digest)
        else:
            # A local file is named by its path, and Snakemake makes no copy of it.
            resolved = resolve(name, directory)
            config, stored = resolved.config, resolved.image
        backend = ""
        if mount:
            with NodeMounts(config, ImageStore(config.store)).mount(stored, progress) as mounted:
                backend = mounted.backend
        done.append(Fetched(image=name, stored=stored, backend=backend))
    return done


@dataclass(frozen=True, slots=True, kw_only=True)
class LockChange:
    """What :func:`lock_images` did with one reference: ``kept``, ``added``, ``moved`` or ``removed``."""

    reference: str
    digest: str
    what: str


def lock_images(
    names: Iterable[str],
    before: Lock,
    directory: str,
    prefix: str,
    *,
    update: bool = False,
    ask: Callable[[ImageReference, Config], LockedImage] | None = None,
) -> tuple[Lock, list[LockChange]]:
    """The lock file that pins ``names``; images that are files need no pin and get none.

    A reference that is pinned stays pinned, unless ``update``.  One that has run is pinned to what ran, by its
    pointer file; any other to what the registry says now.

    Raises:
        UdiError: of the first reference that cannot be resolved.
    """
    config = front_config(os.environ)
    pinned: dict[str, LockedImage] = {}
    changes: list[LockChange] = []
    for name in names:
        named = images.understand(name, directory)
        if isinstance(named, Pointer) or named.transport != "docker":
            continue
        key = str(named)
        old = before.images.get(key)
        if old is not None and not update:
            new = old
        else:
            ran = None if update else pointer.read(pointer_path(prefix, name))
            new = _what_ran(ran, named) if ran is not None else (ask or _ask_registry)(named, config)
        pinned[key] = new
        what = "added" if old is None else "kept" if old.digest == new.digest else "moved"
        changes.append(LockChange(reference=key, digest=new.digest, what=what))
    changes += [
        LockChange(reference=key, digest=old.digest, what="removed")
        for key, old in sorted(before.images.items())
        if key not in pinned
    ]
    return Lock(path=before.path, images=pinned), changes


def _what_ran(ran: Pointer, reference: ImageReference) -> LockedImage:
    store = ImageStore(ran.store)
    tag = store.tag(reference)
    if ran.index:
        return LockedImage(digest=ran.index, images=dict(tag.images) if tag and tag.digest == ran.index else {})
    if tag is not None and ran.digest in tag.images.values():
        # The index that the tag named holds the other platforms' images too.
        return LockedImage(digest=tag.digest, images=dict(tag.images))
    return LockedImage(digest=ran.digest)


def _ask_registry(reference: ImageReference, config: Config) -> LockedImage:
    with credentials(os.environ), open_source(reference, config) as source:
        resolved = resolve_in_source(source, None)
    return LockedImage(digest=resolved.named, images={str(resolved.config.platform): resolved.manifest.digest})


def missing(names: Iterable[str], locked: Mapping[str, LockedImage], directory: str) -> list[str]:
    """The images among ``names`` that a lock file does not pin."""
    absent = []
    for name in names:
        named = images.understand(name, directory)
        movable = isinstance(named, ImageReference) and named.transport == "docker" and named.digest is None
        if movable and str(named) not in locked:
            absent.append(name)
    return absent


def empty_lock(path: str) -> Lock:
    """The lock file at ``path``, or an empty one that is to become it."""
    return lock.load(path) if os.path.exists(path) else Lock(path=path)
