"""From the word IMAGE to an image in the store, by way of pointer and lock files.  Light: warm starts come here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace

from udi_core import Config, ImageAbsent, ImageReference, ImageStore, StoredImage, load_config
from udi_snakemake import images, lock
from udi_snakemake.arguments import PREFIXES
from udi_snakemake.lock import LockedImage
from udi_snakemake.pointer import Pointer


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """An image that is in the store.

    Attributes:
        name: how the caller named it: an absolute path, or the reference.
        store: root of its store.
    """

    image: StoredImage
    name: str
    config: Config
    store: str


def resolve(text: str, directory: str, environ: Mapping[str, str] = os.environ) -> Resolved:
    """The image that IMAGE names for a run in ``directory``; pulled if the store does not hold it.

    A pointer file names its image for good, and a lock file overrides it; a reference names what it named when it was
    last pulled.  So no network is used where the image is there.

    Raises:
        UdiError: of the reference, the files, the registry or the store.
    """
    config = front_config(environ)
    named = images.understand(text, directory)
    if isinstance(named, Pointer):
        if named.store != config.store:
            config = replace(config, store=named.store)
        name = os.path.join(directory, text)
        locked = locked_image(named.reference, directory, environ)
        reference = ImageReference.parse(named.reference, cwd=directory)
        if locked is None or agrees(named, locked):
            digest = named.for_this_node()
            try:
                image = ImageStore(config.store, config.node_dir).image(digest)
                return Resolved(image=image, name=name, config=config, store=config.store)
            except ImageAbsent:
                wanted = pin(reference, digest)
        else:
            wanted = pin(reference, locked.digest)
    else:
        local = named.transport in ("oci", "docker-archive", "dir", "file")
        name = named.path if local else str(named)
        locked = locked_image(str(named), directory, environ)
        wanted = pin(named, locked.digest) if locked else named
    return Resolved(image=_stored_or_pulled(wanted, config), name=name, config=config, store=config.store)


def _stored_or_pulled(wanted: ImageReference, config: Config) -> StoredImage:
    store = ImageStore(config.store)
    try:
        if not _changed_since_pulled(wanted, store):
            return store.lookup(wanted)
    except ImageAbsent:
        if wanted.transport == "id":
            raise
    from udi_core import pull

    with credentials(os.environ):
        return pull(wanted, store, config)


@contextlib.contextmanager
def credentials(environ: MutableMapping[str, str]) -> Iterator[None]:
    """``APPTAINER_DOCKER_USERNAME`` and ``…_PASSWORD`` under the names that UDI's registry client reads, for a while.

    Not for good: the task that comes after the pull inherits the environment.
    """
    before = dict(environ)
    for prefix in reversed(PREFIXES):
        username, password = (environ.get(f"{prefix}_DOCKER_{what}") for what in ("USERNAME", "PASSWORD"))
        if username and password:
            environ.update(UDI_USERNAME=username, UDI_PASSWORD=password)
    try:
        yield
    finally:
        for name in ("UDI_USERNAME", "UDI_PASSWORD"):
            environ.pop(name, None)
            if name in before:
                environ[name] = before[name]


def _changed_since_pulled(reference: ImageReference, store: ImageStore) -> bool:
    """Whether a local image is newer than what the store made of it."""
    if not reference.path:
        return False
    tag = store.tag(reference)
    if tag is None:
        return True
    import time

    place = os.path.join(reference.path, "index.json") if reference.transport == "oci" else reference.path
    try:
        written = os.stat(place).st_mtime
    except OSError:
        return False
    # Whole seconds: what was written within the second of the pull counts as newer.
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(written)) >= tag.seen


def front_config(environ: Mapping[str, str]) -> Config:
    """UDI's configuration, with what people set for the real program where UDI was told nothing else.

    ``APPTAINER_CACHEDIR`` keeps images off a small home directory, and so it moves the store.
    """
    config = load_config(environ)
    if config.origins.get("store") == "default":
        for prefix in PREFIXES:
            cache = environ.get(f"{prefix}_CACHEDIR")
            if cache:
                origins = {**config.origins, "store": f"{prefix}_CACHEDIR"}
                return replace(config, store=os.path.join(os.path.abspath(cache), "udi"), origins=origins)
    return config


def locked_image(reference: str, directory: str, environ: Mapping[str, str]) -> LockedImage | None:
    """What the lock file of a run in ``directory`` says of a reference; None if there is no file, or no word in it."""
    path = lock.find(directory, environ)
    return lock.load(path).images.get(reference) if path else None


def agrees(named: Pointer, locked: LockedImage) -> bool:
    """Whether a pointer names what was locked, on any platform."""
    if named.index:
        return locked.digest == named.index
    return named.digest == locked.digest or named.digest in locked.images.values()


def pin(reference: ImageReference, digest: str) -> ImageReference:
    """The same repository by digest; an image that comes from no registry has only its id."""
    if reference.transport != "docker":
        return ImageReference(transport="id", digest=digest.removeprefix("sha256:"))
    return replace(reference, tag=None, digest=digest)
