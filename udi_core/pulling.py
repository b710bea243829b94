"""One verb: make an image be in the store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from udi_core import lease, record
from udi_core import store as stores
from udi_core.config import Config
from udi_core.errors import ImageAbsent, StoreError
from udi_core.flatten import FlattenReport, Limits, flatten
from udi_core.image_config import ImageConfig, Platform
from udi_core.layer import LayerInput
from udi_core.manifest import Descriptor
from udi_core.platforms import host_platform, parse_platform
from udi_core.policy import check_reference
from udi_core.progress import Progress, ProgressSink, ignore
from udi_core.reference import ImageReference
from udi_core.sources import ResolvedImage, Source, open_source, resolve
from udi_core.squashfs import SquashfsOptions, SquashfsWriter, list_programs, writer_program, writer_version
from udi_core.store import ImageStore, PythonInfo, StoredImage

# First two bytes of a .pyc, little-endian (CPython, Include/internal/pycore_magic_number.h and its predecessors).
_MAGIC = {
    "3.6": 3379,
    "3.7": 3394,
    "3.8": 3413,
    "3.9": 3425,
    "3.10": 3439,
    "3.11": 3495,
    "3.12": 3531,
    "3.13": 3571,
    "3.14": 3627,
}


def pull(
    reference: ImageReference,
    store: ImageStore,
    config: Config,
    *,
    platform: Platform | None = None,
    force: bool = False,
    progress: ProgressSink = ignore,
) -> StoredImage:
    """Make the image that a reference names be in the store, and tag it.

    Idempotent: an image that is there is not fetched again (``force`` makes it anew), and costs one request to the
    registry; a digest or id that is there costs none.  Of many processes on many nodes that pull one digest, one
    works and the others wait for it.  If it fails, the store is as it was.

    Raises:
        UdiError: each of the tree's branches; see :mod:`udi_core.errors`.
    """
    began = time.time()
    mirrors = config.mirrors.get(reference.registry, ())
    check_reference(config.policy, reference, [each for each in mirrors if each not in config.from_site])
    if platform is None and config.platform:
        platform = parse_platform(config.platform)
    wanted = platform or host_platform()
    pinned = reference.transport == "id" or (reference.transport == "docker" and reference.digest is not None)
    if pinned and not force:
        try:
            return store.lookup(reference, wanted)
        except ImageAbsent:
            if reference.transport == "id":
                raise
    store.prepare()
    if reference.transport in ("file", "dir"):
        named, image = _import(reference, wanted, store, config, force, progress)
    else:
        progress(Progress("resolve", reference.short, 0, 1, "images"))
        with open_source(reference, config, progress) as source:
            resolved = resolve(source, wanted)
            progress(Progress("resolve", reference.short, 1, 1, "images"))

            def make(staging: str, show: ProgressSink) -> StoredImage:
                made = _flatten(resolved, source, store.staged_squashfs(staging), config, show)
                return _describe(reference, resolved, made)

            named, image = resolved.named, _produce(resolved.manifest.digest, make, store, force, progress)
    with stores.translated(store.root):
        turn = lease.wait(store.tag_lease_path(reference), lambda: False, lambda holder, note: None)
    assert turn is not None
    with turn:
        store.set_tag(reference, named, wanted, image)
    try:
        store.image(image.digest)
    except ImageAbsent:  # a gc had seen that nothing named it
        return pull(reference, store, config, platform=platform, progress=progress)
    line = record.head("pull", image.digest, image.reference, "", os.geteuid(), os.environ, "")
    record.write(record.path(config), line, start=began, seconds=time.time() - began)
    return image


def _produce(
    digest: str,
    make: Callable[[str, ProgressSink], StoredImage],
    store: ImageStore,
    force: bool,
    progress: ProgressSink,
) -> StoredImage:
    """The image of a digest: found, or made by ``make(staging directory, progress)``, or by another process."""

    def there() -> bool:
        try:
            store.image(digest)
        except ImageAbsent:
            return False
        except StoreError:
            if not force:
                raise  # it says so, and asks for --force
        return True

    def waiting(holder: str, note: str) -> None:
        progress(Progress("wait", digest[7:19], 0, None, "", f"{holder}: {note}" if note else holder))

    found = there()
    if found and not force:
        return store.image(digest)
    with stores.translated(store.root):
        held = lease.wait(store.lease_path(digest), lambda: not found and there(), waiting)
    if held is None:
        return store.image(digest)
    with held:
        if not force and there():
            return store.image(digest)

        def show(event: Progress) -> None:
            if event.total:
                held.tell(f"{event.phase} {event.done * 100 // event.total} %")
            progress(event)

        with store.staging(digest) as staging:
            made = make(staging, show)
            held.check()
            return store.publish(staging, made, anew=force)


def _import(
    reference: ImageReference,
    platform: Platform,
    store: ImageStore,
    config: Config,
    force: bool,
    progress: ProgressSink,
) -> tuple[str, StoredImage]:
    """A local file or directory: what it is named by, and its image, whose digest is that of its squashfs."""
    from udi_core import local

    with store.staging("sha256:" + "0" * 64) as staging:
        path = store.staged_squashfs(staging)
        if reference.transport == "file":
            part = local.find_squashfs(reference.path)
            seen = os.stat(reference.path)
            named = f"file:{seen.st_dev}:{seen.st_ino}:{seen.st_size}:{seen.st_mtime_ns}"
            before = store.tag(reference)
            if before and before.digest == named and not force:
                with contextlib.suppress(ImageAbsent):
                    return named, store.lookup(reference, platform)
            with stores.translated(store.root):
                local.copy_squashfs(part, path, progress)
        else:
            named = f"dir:{reference.path}"
            local.pack_directory(reference.path, path, _options(config))
        digest = local.file_digest(path)
        programs = list_programs(path)

        def make(final: str, show: ProgressSink) -> StoredImage:
            os.rename(path, store.staged_squashfs(final))
            return StoredImage(
                digest=digest,
                squashfs=store.staged_squashfs(final),
                size=os.path.getsize(store.staged_squashfs(final)),
                squashfs_sha256=digest.partition(":")[2],
                config=ImageConfig(platform=Platform(os=platform.os, architecture=platform.architecture)),
                created=stores.now(),
                reference=str(reference),
                python=find_python(programs, ""),
                shell=find_shell(programs),
            )

        return named, _produce(digest, make, store, force, progress)


def _options(config: Config) -> SquashfsOptions:
    return SquashfsOptions(compression=config.compression, level=config.compression_level, block_size=config.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    path: str
    size: int
    sha256: str
    report: FlattenReport
    tool: str


def _flatten(resolved: ResolvedImage, source: Source, path: str, config: Config, progress: ProgressSink) -> _Made:
    options = _options(config)
    layers = [
        LayerInput(descriptor=layer, diff_id=diff_id, open=_opener(source, layer))
        for layer, diff_id in zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True)
    ]
    limits = Limits(entries=config.max_entries, size=config.max_size, ratio=config.max_ratio)
    name, tool = writer_program()  # asked first: who lacks it need not wait for a download
    writer: SquashfsWriter | None = None

    def start() -> Callable[[bytes | memoryview], object]:
        nonlocal writer
        if writer is not None:
            writer.close()
        writer = SquashfsWriter(path, options)
        return writer.write

    try:
        report = flatten(layers, start, limits=limits, rewrite=name != "tar2sqfs", progress=progress)
        assert writer is not None
        writer.finish()
    finally:
        if writer is not None:
            writer.close()
    version = f"{name} {'.'.join(map(str, writer_version(name, tool)))}"
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _Made(path=path, size=os.path.getsize(path), sha256=sha256, report=report, tool=version)


def _opener(source: Source, layer: Descriptor) -> Callable[[], Iterator[bytes]]:
    return lambda: source.stream(layer)


def _describe(reference: ImageReference, resolved: ResolvedImage, made: _Made) -> StoredImage:
    return StoredImage(
        digest=resolved.manifest.digest,
        squashfs=made.path,
        size=made.size,
        squashfs_sha256=made.sha256,
        config=resolved.config,
        created=stores.now(),
        reference=str(reference),
        python=find_python(made.report.programs, resolved.config.env.get("PATH", ""), made.report.bytecode),
        shell=find_shell(made.report.programs),
        tools={"squashfs": made.tool},
        notes=tuple(made.report.notes),
    )


def find_python(
    programs: dict[str, str | None], path: str, bytecode: Mapping[str, bytes] | None = None
) -> PythonInfo | None:
    """The Python 3 that a shell in the image would find, from the programs that flattening saw.

    Its magic number is that of the ``bytecode`` in the image, or of the version; "" if neither is known.
    """
    for directory in (path or "/usr/local/bin:/usr/bin:/bin").split(":"):
        for name in ("python3", "python"):
            start = f"{directory.rstrip('/')}/{name}"
            end = _follow(programs, start)
            version = end and re.search(r"python(3\.\d+)[^/]*$", end)
            if version:
                magic = _MAGIC.get(version[1])
                packed = magic.to_bytes(2, "little") + b"\r\n" if magic else b""
                packed = (bytecode or {}).get(f"cpython-{version[1].replace('.', '')}", packed)
                return PythonInfo(path=start, version=version[1], magic=packed.hex())
    return None


def find_shell(programs: dict[str, str | None]) -> str:
    """Absolute path of bash, else of sh, else ""."""
    for path in ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/sh", "/usr/bin/sh"):
        if _follow(programs, path):
            return path
    return ""


def _follow(programs: dict[str, str | None], path: str) -> str | None:
    """Where a chain of links ends, or None if it leaves what is known."""
    for _ in range(10):
        name = path.lstrip("/")
        if name not in programs and not name.startswith("usr/"):
            name = "usr/" + name  # merged /usr: /bin is a symlink to usr/bin
        if name not in programs:
            return None
        target = programs[name]
        if target is None:
            return "/" + name
        path = os.path.normpath(os.path.join("/", os.path.dirname(name), target))
    return None
