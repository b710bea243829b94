"""``pull``: a reference becomes an image in the store and a pointer file that names it for good."""

from __future__ import annotations

import dataclasses
import os
import sys

from udi_core import (
    Config,
    ImageAbsent,
    ImageReference,
    ImageStore,
    Progress,
    ProgressSink,
    UsageError,
    for_this_node,
    ignore,
    pull_for_nodes,
)
from udi_core import pull as pull_into_store
from udi_snakemake import images, pointer
from udi_snakemake.arguments import Pull, default_name
from udi_snakemake.pointer import Pointer
from udi_snakemake.resolving import agrees, credentials, front_config, locked_image, pin


def pull(request: Pull) -> None:
    """Carry out ``pull [FILE] IMAGE``."""
    path = os.path.abspath(request.path or default_name(request.image))
    written = fetch(
        request.image,
        path,
        # Snakemake starts pull in the prefix; its own directory, where a lock file lies, is that of our parent.
        run_directory=_parents_directory(),
        force=request.force,
        architecture=request.architecture,
        plain_http=request.plain_http,
        progress=ignore if request.quiet else show_lines,
    )
    if not request.quiet:
        print(f"{path} points to {written.reference}, {written.digest}", file=sys.stderr)


def fetch(
    image: str,
    path: str,
    *,
    run_directory: str | None = None,
    force: bool = False,
    architecture: str | None = None,
    plain_http: bool = False,
    progress: ProgressSink = ignore,
) -> Pointer:
    """Make sure that the store holds an image and that ``path`` points to it.

    Idempotent, and safe for any number of processes on any number of nodes at once: one of them pulls, and all end
    with the same pointer, because the first one written stays, unless ``force`` or a lock file wants another.
    Needs no network where the pointer is there and its image is in the store.

    Args:
        image: a reference, or the path of a local image.
        path: of the pointer file.
        run_directory: where the lock file is looked for (default: the working directory).

    Raises:
        UdiError: of the reference, the registry, the store or the lock file.
    """
    config = front_config(os.environ)
    named = images.understand(image, os.getcwd())
    if isinstance(named, Pointer):
        raise UsageError(f"{image} is a pointer file already", "", "Name what it should point to: docker://NAME:TAG")
    if plain_http and named.transport == "docker":
        config = dataclasses.replace(config, insecure_registries=(*config.insecure_registries, named.registry))
    if architecture:
        config = dataclasses.replace(config, platform=f"linux/{architecture}")
    locked = locked_image(str(named), run_directory or os.getcwd(), os.environ)
    existing = None if force else pointer.read(path)
    wanted = pin(named, locked.digest) if locked else named
    if existing is not None:
        if existing.reference != str(named):
            raise UsageError(
                f"{path} points to {existing.reference}", f"It was to point to {named}.", "Use --force to replace it."
            )
        if locked is None or agrees(existing, locked):
            if is_stored(existing):
                return existing
            # Gone from the store: the same image comes back, wherever its tag points by now.
            wanted = pin(named, existing.index or existing.digest)
    with credentials(os.environ):
        if force:
            pull_into_store(wanted, ImageStore(config.store), config, force=True, progress=progress)
        fresh = _pulled(wanted, str(named), config, progress)
    return pointer.write(path, fresh, replace=force or existing is not None)


def _pulled(wanted: ImageReference, name: str, config: Config, progress: ProgressSink) -> Pointer:
    """Pull what nodes of any kind may need, since nobody knows yet where jobs will run."""
    store = ImageStore(config.store)
    found = pull_for_nodes({"default": str(wanted)}, store, config, progress)
    images = {kind: image.digest for kind, image in found.items()}
    if list(images) == ["default"]:
        return Pointer(reference=name, digest=images["default"], store=config.store)
    tag = store.tag(wanted)
    try:
        here = for_this_node(images, name)
    except UsageError:  # on the machine where a run is started, which may be older than all nodes
        here = next(iter(images.values()))
    return Pointer(reference=name, digest=here, store=config.store, images=images, index=tag.digest if tag else "")


def is_stored(named: Pointer) -> bool:
    """Whether all that a pointer names is in the store."""
    try:
        for digest in {named.digest, *named.images.values()}:
            ImageStore(named.store).image(digest)
    except ImageAbsent:
        return False
    return True


def show_lines(event: Progress) -> None:
    """Plain lines: Snakemake keeps them, and shows them if the pull fails."""
    if event.phase == "wait" or event.done == event.total:
        print(f"{event.phase} {event.item} {event.note}".rstrip(), file=sys.stderr)


def _parents_directory() -> str:
    try:
        return os.readlink(f"/proc/{os.getppid()}/cwd")
    except OSError:
        return os.getcwd()
