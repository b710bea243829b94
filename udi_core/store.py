"""The image store: plain files on a file system that all nodes share, and the only code that knows their paths.

::

    images/sha256/<aa>/<hex>/image.squashfs   immutable once published; <hex> is the platform manifest's digest
    images/sha256/<aa>/<hex>/image.json       what is known of it; see StoredImage
    tags/<registry>/<repository>/<tag>.json   what a reference was seen to name, and when
    uses/sha256/<hex>/<node>                  nodes that have it mounted, and jobs that wait for it
    tmp/  locks/

Readers take no lock.  An image is published by one rename of a whole directory, so a reader sees all of it or none;
a tag by one rename of a file, so a reader sees the old digest or the new one.
"""

from __future__ import annotations

import errno
import os
import time

from udi_core.contexts import contextmanager, suppress
from udi_core.documents import parse_json
from udi_core.errors import CorruptImage, ImageAbsent, StoreError, StoreFull, UsageError
from udi_core.image_config import ImageConfig, Platform
from udi_core.node_files import read_near
from udi_core.platforms import can_run, host_platform, level, parse_platform
from udi_core.reference import ImageReference
from udi_core.values import dataclass, field, replace

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_SQUASHFS = "image.squashfs"
_RECORD = "image.json"
_VERSION = 1  # of the record
# Seconds without a heartbeat after which a lease is dead whatever became of the clocks of two nodes.
_DEAD_LOCK = 600.0
# Seconds within which a living holder has certainly rewritten its lease.
_LIVING_LOCK = 60.0
# What reading a record may raise that is not what was written.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
#: Seconds after which a mark of use that nobody renewed is a dead node's.  Longer than any job: what cannot renew its
#: mark (a mount by root that one task uses all the time) must not lose its image.
STALE = 14 * 86400.0
#: Begins the name of a mark that belongs to a job of Slurm (:mod:`udi_core.queued`); and seconds after which it counts
#: as forgotten: jobs may wait for weeks.
JOB = "job."
STALE_JOB = 90 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonInfo:
    """The Python of an image.

    Attributes:
        path: absolute path in the image.
        version: ``3.11``.
        magic: hexadecimal magic number of its bytecode, or "" if unknown.
    """

    path: str
    version: str
    magic: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image in the store.

    Attributes:
        digest: digest of its platform manifest: the image's identity.
        squashfs: absolute path of the squashfs.
        size: of the squashfs, in bytes.
        squashfs_sha256: hexadecimal digest of the squashfs itself.
        created: when it was flattened, ISO 8601, UTC.
        reference: canonical form of the reference that it was first pulled by.
        tools: versions of the programs that made it.
        shell: absolute path of bash, or of sh where there is no bash; "" if there is neither.
        notes: what of its layers was kept inside the image or left out, and why.
    """

    digest: str
    squashfs: str
    size: int
    squashfs_sha256: str
    config: ImageConfig
    created: str
    reference: str
    python: PythonInfo | None = None
    shell: str = ""
    tools: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """What a reference was seen to name.

    Attributes:
        digest: what the source said: an index's or a manifest's digest.
        images: platform that was asked for -> digest of its image.
        built: digest of an image -> platform that it was built for, which many others can run.
        seen: when, ISO 8601, UTC.
    """

    reference: str
    digest: str
    images: dict[str, str]
    seen: str
    built: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What gc removed (or would remove): digests of images, bytes, and left-overs of killed processes."""

    images: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    freed: int = 0


class ImageStore:
    """A store below ``root``; nothing is created before something is written.

    ``near`` is the node directory where what tasks read again and again may be copied to (:mod:`udi_core.node_files`).
    """

    def __init__(self, root: str, near: str = "") -> None:
        self.root = root
        self._near = near

    # Reading: no locks, no more than two files opened.

    def lookup(self, reference: ImageReference, platform: Platform | None = None) -> StoredImage:
        """The image that a reference named when it was last pulled; no network.

        For a ``platform``, it is the image that was pulled for that one.  Without, it is this node's: what was
        pulled for its platform, else the best of what was pulled for others and runs here.

        Raises:
            ImageAbsent: it was never pulled, or was removed, or is for other nodes only.
        """
        if reference.transport == "id":
            return self.image(self.expand(reference.digest or ""))
        if reference.transport == "docker" and reference.digest and reference.tag is None:
            with suppress(ImageAbsent):
                return self.image(reference.digest)  # a platform manifest's digest is the image's own
        tag = self.tag(reference)
        digest = tag and _pick(tag, platform)
        if not digest:
            others = f" for {', '.join(tag.images)} only" if tag else ""
            raise ImageAbsent(
                f"{reference.short} is not in the store{others and ' for this node'}",
                f"The store is {self.root}; it was pulled{others}." if tag else f"The store is {self.root}.",
                f"Pull it first: udi pull {reference.short}",
            )
        return self.image(digest)

    def image(self, digest: str) -> StoredImage:
        """The image of a digest.

        Raises:
            ImageAbsent: it is not here.
            StoreError: its record is damaged.
        """
        directory = self._image_directory(digest)
        try:
            record = read_near(os.path.join(directory, _RECORD), self._near)
            return _parse_image(parse_json(record), digest, os.path.join(directory, _SQUASHFS))
        except FileNotFoundError:
            raise ImageAbsent(
                f"Image {digest[:19]} is not in the store",
                f"The store is {self.root}.",
                "udi images lists what is there.",
            ) from None
        except PermissionError as error:
            raise _unreadable(error) from error
        except _DAMAGE as error:
            raise StoreError(
                f"The record of image {digest[:19]} cannot be read",
                f"{directory}/{_RECORD}: {error}",
                "Pull the image again with --force.",
            ) from error

    def expand(self, prefix: str) -> str:
        """The digest whose hexadecimal digits begin with ``prefix``.

        Raises:
            ImageAbsent: there is none.
            UsageError: there are several.
        """
        shard = os.path.join(self.root, "images", "sha256", prefix[:2])
        found = [name for name in _listdir(shard) if name.startswith(prefix)]
        if not found:
            raise ImageAbsent(
                f"There is no image {prefix} in the store", f"The store is {self.root}.", "See: udi images"
            )
        if len(found) > 1:
            raise UsageError(
                f"{prefix} is the beginning of {len(found)} image ids", "\n".join(found), "Give more digits."
            )
        return "sha256:" + found[0]

    def tag(self, reference: ImageReference) -> Tag | None:
        """What a reference was last seen to name, or None."""
        try:
            return _parse_tag(parse_json(read_near(self._tag_path(reference), self._near)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise _unreadable(error) from error
        except _DAMAGE as error:
            raise StoreError(
                f"The tag of {reference.short} cannot be read", str(error), f"Pull it again: udi pull {reference.short}"
            ) from error

    def images(self) -> Iterator[StoredImage]:
        """All images, by digest; damaged ones are passed over (``udi verify`` finds them)."""
        for digest in self._digests():
            with suppress(StoreError):
                yield self.image(digest)

    def _digests(self) -> Iterator[str]:
        """Of all images, damaged ones too."""
        top = os.path.join(self.root, "images", "sha256")
        for shard in _listdir(top):
            for name in _listdir(os.path.join(top, shard)):
                if name[:2] == shard:  # not what NFS calls a removed file that is still open
                    yield "sha256:" + name

    def tags(self) -> Iterator[Tag]:
        """All tags."""
        for directory, _, names in sorted(os.walk(os.path.join(self.root, "tags"), onerror=_stop)):
            for name in sorted(names):
                if name.endswith(".json"):
                    try:
                        with open(os.path.join(directory, name), "rb") as file:
                            tag = _parse_tag(parse_json(file.read()))
                    except _DAMAGE:
                        continue
                    yield tag

    # Writing.

    def prepare(self) -> None:
        """Make the store's directories; idempotent.

        Raises:
            StoreError: the store cannot be written.
        """
        with translated(self.root):
            for name in ("images/sha256", "tags", "tmp", "locks", "uses"):
                os.makedirs(os.path.join(self.root, name), exist_ok=True)
            if not os.access(os.path.join(self.root, "tmp"), os.W_OK):
                code = errno.EROFS if os.statvfs(self.root).f_flag & os.ST_RDONLY else errno.EACCES
                raise OSError(code, os.strerror(code), self.root)

    def lease_path(self, digest: str) -> str:
        """Where the lease of a digest's producer is."""
        return os.path.join(self.root, "locks", digest.replace(":", "-"))

    def tag_lease_path(self, reference: ImageReference) -> str:
        """Where the lease of whoever records what a reference names is."""
        return os.path.join(self.root, "locks", "tag-" + _sha256(str(reference).encode("utf-8", "surrogateescape")))

    @contextmanager
    def staging(self, digest: str) -> Iterator[str]:
        """A directory of one's own, in which an image is made; removed at the end if it was not published."""
        self.prepare()
        path = os.path.join(self.root, "tmp", f"{digest[7:19]}.{os.uname().nodename}.{os.getpid()}.{time.time_ns()}")
        with translated(self.root):
            os.mkdir(path)
        try:
            yield path
        finally:
            _remove_tree(path)

    def staged_squashfs(self, staging: str) -> str:
        """Path of the squashfs in a staging directory."""
        return os.path.join(staging, _SQUASHFS)

    def publish(self, staging: str, image: StoredImage, *, anew: bool = False) -> StoredImage:
        """Make a staged image visible, all at once.

        If the image is there already, that one stays, unless ``anew``: then its record is renewed, and its squashfs
        too if that is not what it should be.  In that case a reader may for an instant find none, and must look
        again; a node that has the damaged one mounted goes on with it.

        Raises:
            StoreFull, StoreError: it cannot be written; nothing was published.
        """
        final = self._image_directory(image.digest)
        with translated(self.root):
            os.chmod(os.path.join(staging, _SQUASHFS), 0o444)
            _write_json(os.path.join(staging, _RECORD), _format_image(image))
            sync(os.path.join(staging, _SQUASHFS))
            sync(staging)
            os.makedirs(os.path.dirname(final), exist_ok=True)
            os.chmod(staging, 0o755)  # noqa: S103 - readers of a shared store; mkdir applied the umask
            if anew and self._is_sound(image):
                # Nodes that have it mounted would lose it if it were another file, were it the same to the last bit.
                os.replace(os.path.join(staging, _RECORD), os.path.join(final, _RECORD))
            elif anew and os.path.isdir(final):
                old = f"{staging}.old"
                os.rename(final, old)
                os.rename(staging, final)
                _remove_tree(old)
            else:
                try:
                    os.rename(staging, final)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
            sync(os.path.dirname(final))
        return self.image(image.digest)

    def _is_sound(self, image: StoredImage) -> bool:
        """Whether the squashfs that is published for an image has the same bytes."""
        try:
            verify(replace(image, squashfs=os.path.join(self._image_directory(image.digest), _SQUASHFS)))
        except CorruptImage:
            return False
        return True

    def set_tag(self, reference: ImageReference, digest: str, platform: Platform, image: StoredImage) -> None:
        """Record what a reference names.  Atomic; other platforms' images stay if the digest is unchanged.

        Of two that do it at once for two platforms, one is lost: hold :meth:`tag_lease_path`.
        """
        before = None
        with suppress(StoreError):  # a damaged one is replaced
            before = self.tag(reference)
        if before is None or before.digest != digest:
            before = None
        images = {**(before.images if before else {}), str(platform): image.digest}
        built = {**(before.built if before else {}), image.digest: str(image.config.platform)}
        if before and (before.images, before.built) == (images, built):
            return
        path = self._tag_path(reference)
        document = {"reference": str(reference), "digest": digest, "images": images, "built": built, "seen": now()}
        with translated(self.root):
            for directory in (os.path.dirname(path), os.path.join(self.root, "tmp")):
                os.makedirs(directory, exist_ok=True)
            temporary = os.path.join(self.root, "tmp", f"tag.{os.uname().nodename}.{os.getpid()}.{time.time_ns()}")
            try:
                _write_json(temporary, document)
                os.replace(temporary, path)
            except OSError:
                _remove_tree(temporary)
                raise

    def untag(self, reference: ImageReference) -> bool:
        """Forget a tag; False if there was none.  The image stays until gc."""
        with translated(self.root):
            try:
                os.unlink(self._tag_path(reference))
            except FileNotFoundError:
                return False
        return True

    def remove(self, digest: str) -> int:
        """Remove an image, and all tags that name it; the bytes that were freed.

        Raises:
            ImageAbsent: it is not here.
            StoreError: a node has it mounted.
        """
        size = self._size(digest)
        self._check_unused(digest)
        with translated(self.root):
            grave = self._bury(digest)
            try:
                self._check_unused(digest)  # who marks its use after this finds no image
            except StoreError:
                self._exhume(digest, grave)
                raise
            for tag in list(self.tags()):
                if digest in tag.images.values():
                    self.untag(ImageReference.parse(tag.reference))
            if grave:
                _remove_tree(grave)
        return size

    def _check_unused(self, digest: str) -> None:
        users = self.users(digest)
        if users:
            raise StoreError(
                f"Image {digest[:19]} is in use",
                f"It is mounted on, or wanted by: {', '.join(users)}.",
                "Try again when the tasks end.",
            )

    def _size(self, digest: str) -> int:
        """Of an image's files, whatever its record says.

        Raises:
            ImageAbsent: it is not here.
        """
        directory = self._image_directory(digest)
        if not os.path.isdir(directory):
            self.image(digest)
        return _tree_size(directory)

    def _bury(self, digest: str) -> str:
        """Move an image away whole, since a reader must never find half of one; where to, or "" if it is gone."""
        grave = os.path.join(self.root, "tmp", f"{digest[7:19]}.{os.getpid()}.{time.time_ns()}.gone")
        try:
            os.rename(self._image_directory(digest), grave)
        except FileNotFoundError:
            return ""  # another process was faster
        return grave

    def _exhume(self, digest: str, grave: str) -> None:
        if grave:
            with suppress(OSError):  # who missed it has made it anew
                os.rename(grave, self._image_directory(digest))
            _remove_tree(grave)

    def gc(
        self,
        *,
        dry_run: bool = False,
        busy: Callable[[str], bool] = lambda digest: False,
        grace: float = 3600.0,
        stale: float = STALE,
    ) -> GcReport:
        """Remove images that no tag names and no task uses, and what killed processes left behind.

        Args:
            dry_run: only report.
            busy: whether this node has an image mounted.
            grace: seconds that an image or left-over must be old: a pull publishes first and tags then.
            stale: seconds after which another node's use counts as forgotten.
        """
        now = self._clock()
        named = self._named()

        def is_wanted(digest: str) -> bool:
            return digest in named or busy(digest) or bool(self.users(digest, stale=stale))

        found = [digest for digest in self._digests() if not is_wanted(digest)]
        found = [digest for digest in found if _age(self._image_directory(digest), newest=True, now=now) >= grace]
        images, leftovers, freed = [], [], 0
        if dry_run:
            images, freed = found, sum(_tree_size(self._image_directory(digest)) for digest in found)
        else:
            with translated(self.root):
                graves = {digest: self._bury(digest) for digest in found}
            # A pull may have found one of them and named it since the tags were read.  It looks once more when it has
            # done so: either it misses the image, or its tag is seen here.
            named = self._named()
            for digest, grave in graves.items():
                if is_wanted(digest):
                    self._exhume(digest, grave)
                elif grave:
                    images.append(digest)
                    freed += _tree_size(grave)
                    _remove_tree(grave)
        made = {name[7:19] for name in _listdir(os.path.join(self.root, "locks")) if self._is_held(name, now)}
        for name in _listdir(os.path.join(self.root, "tmp")):
            path = os.path.join(self.root, "tmp", name)
            if _age(path, newest=True, now=now) > grace and name[:12] not in made:
                leftovers.append(name)
                freed += _tree_size(path)
                if not dry_run:
                    _remove_tree(path)
        self._sweep_locks(now - max(grace, _DEAD_LOCK), dry_run, leftovers)
        return GcReport(images=tuple(images), leftovers=tuple(leftovers), freed=freed)

    def _named(self) -> set[str]:
        return {digest for tag in self.tags() for digest in (*tag.images.values(), tag.digest)}

    def _clock(self) -> float:
        """The time by which files here are stamped: the file server's clock and this node's may differ by hours."""
        path = os.path.join(self.root, "tmp", f"clock.{os.uname().nodename}.{os.getpid()}.{time.time_ns()}")
        try:
            with open(path, "w") as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:  # a store that is read-only, or not there
            return time.time()
        finally:
            with suppress(OSError):
                os.unlink(path)

    def _is_held(self, lock: str, now: float) -> bool:
        """Whether a lease has a heartbeat; what its holder makes is no left-over, however long a download stalls."""
        return _age(os.path.join(self.root, "locks", lock), now=now) < _LIVING_LOCK

    def _sweep_locks(self, before: float, dry_run: bool, leftovers: list[str]) -> None:
        """Leases whose holder was killed while nobody waited; a living one is rewritten every few seconds."""
        for name in _listdir(os.path.join(self.root, "locks")):
            path = os.path.join(self.root, "locks", name)
            if _age(path, now=before) > 0:
                leftovers.append(name)
                if not dry_run:
                    _remove_tree(path)

    # Use by nodes.

    def mark_use(self, digest: str, node: str, *, younger: float = 0.0) -> str:
        """Say that a node has an image mounted.  A store that cannot be written is left alone.

        A mark that is ``younger`` (in seconds) stays as it is.

        Returns:
            The file whose removal ends the use, for a process that outlives this one.
        """
        path = self._use_path(digest, node)
        with suppress(OSError):
            if os.path.exists(path) and _age(path) < younger:
                return path
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w"):
                os.utime(path)
        return path

    def unmark_use(self, digest: str, node: str) -> None:
        """Say that a node has unmounted an image; idempotent."""
        with suppress(OSError):
            os.unlink(self._use_path(digest, node))

    def users(self, digest: str, *, stale: float = STALE) -> list[str]:
        """The nodes that have an image mounted, and the jobs that want it.

        Marks of nodes that are older than ``stale`` seconds are not counted, nor those of jobs after
        :data:`STALE_JOB`.
        """
        directory = os.path.dirname(self._use_path(digest, "x"))

        def counts(name: str) -> bool:
            return _age(os.path.join(directory, name)) < (STALE_JOB if name.startswith(JOB) else stale)

        return [name for name in _listdir(directory) if counts(name)]

    def uses(self) -> Iterator[tuple[str, str]]:
        """All marks of use: the image's digest, and who uses it."""
        top = os.path.join(self.root, "uses", "sha256")
        for name in _listdir(top):
            for user in _listdir(os.path.join(top, name)):
                yield f"sha256:{name}", user

    def _use_path(self, digest: str, node: str) -> str:
        return os.path.join(self.root, "uses", digest.replace(":", "/"), node)

    def _image_directory(self, digest: str) -> str:
        algorithm, _, name = digest.partition(":")
        return os.path.join(self.root, "images", algorithm, name[:2], name)

    def _tag_path(self, reference: ImageReference) -> str:
        top = os.path.join(self.root, "tags")
        if reference.transport != "docker":
            name = _sha256(str(reference).encode("utf-8", "surrogateescape"))
            return os.path.join(top, reference.transport, name + ".json")
        name = reference.tag or ""
        if reference.digest:
            name += "@" + reference.digest.replace(":", "-")
        # A repository may be called like another's tag file; "_tags" cannot be a path component of one.
        return os.path.join(top, reference.registry, reference.repository, "_tags", name + ".json")


def _sha256(data: bytes) -> str:
    # hashlib loads OpenSSL, which costs a warm start 3 ms.
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        try:
            from _sha2 import sha256  # type: ignore[import-not-found]  # since Python 3.12
        except ImportError:
            from hashlib import sha256
    return str(sha256(data).hexdigest())


def now() -> str:
    """The present, ISO 8601, UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextmanager
def translated(root: str) -> Iterator[None]:
    """Turn the operating system's errors of writing the store into the store's own."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"No space is left in the store {root}", str(error), "Make room: udi gc; or set UDI_STORE elsewhere."
            ) from error
        raise StoreError(
            f"The store {root} cannot be written",
            str(error),
            "Set UDI_STORE to a directory of your own, or ask the owner of this one.",
        ) from error


def _unreadable(error: OSError) -> StoreError:
    return StoreError(
        f"The store's {error.filename} cannot be read",
        str(error),
        "Set UDI_STORE to a directory of your own, or ask the owner of this one.",
    )


def _stop(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise _unreadable(error) from error


def _pick(tag: Tag, platform: Platform | None) -> str | None:
    if platform is not None:
        return tag.images.get(str(platform))
    node = host_platform()
    if str(node) in tag.images:
        return tag.images[str(node)]
    fitting = [
        (level(built), digest)
        for wanted, digest in tag.images.items()
        if can_run(built := parse_platform(tag.built.get(digest, wanted)), node)
    ]
    return max(fitting, default=(0, None))[1]


def _parse_image(document: dict[str, Any], digest: str, squashfs: str) -> StoredImage:
    if document.get("version", _VERSION) != _VERSION:
        raise StoreError(
            f"Image {digest[:19]} was put into the store by another UDI",
            f"Its record is of version {document['version']}; this one knows {_VERSION}.",
            "Use that UDI, or set UDI_STORE to another directory.",
        )
    config = document["config"]
    python = document.get("python")
    return StoredImage(
        digest=digest,
        squashfs=squashfs,
        size=int(document["size"]),
        squashfs_sha256=document["squashfs_sha256"],
        config=ImageConfig(
            platform=Platform(**config["platform"]),
            env=dict(config["env"]),
            entrypoint=tuple(config["entrypoint"]),
            cmd=tuple(config["cmd"]),
            workdir=config["workdir"],
            user=config["user"],
            labels=dict(config["labels"]),
            diff_ids=tuple(config["diff_ids"]),
            created=config["created"],
        ),
        created=document["created"],
        reference=document["reference"],
        python=PythonInfo(**python) if python else None,
        shell=document.get("shell", ""),
        tools=document.get("tools", {}),
        notes=tuple(document.get("notes", ())),
    )


def _format_image(image: StoredImage) -> dict[str, Any]:
    from dataclasses import asdict

    document = asdict(image)
    # The directory's own name and place say these; a store may be moved.
    del document["digest"], document["squashfs"]
    return {"version": _VERSION, **document}


def _parse_tag(document: dict[str, Any]) -> Tag:
    return Tag(
        reference=document["reference"],
        digest=document["digest"],
        images=dict(document["images"]),
        seen=document["seen"],
        built=dict(document.get("built", {})),
    )


def verify(image: StoredImage, chunk: int = 1 << 20) -> None:
    """Read an image's squashfs and compare it with its digest.

    Raises:
        CorruptImage: it was damaged.
    """
    import hashlib

    state = hashlib.sha256()
    try:
        with open(image.squashfs, "rb") as file:
            while data := file.read(chunk):
                state.update(data)
    except OSError as error:
        raise CorruptImage(
            f"Image {image.digest[:19]} cannot be read", str(error), f"Pull it anew: udi pull --force {image.reference}"
        ) from error
    if state.hexdigest() != image.squashfs_sha256:
        raise CorruptImage(
            f"Image {image.digest[:19]} is damaged",
            f"{image.squashfs}\nexpected sha256:{image.squashfs_sha256}\nfound    sha256:{state.hexdigest()}",
            f"Pull it anew: udi pull --force {image.reference}",
        )


def _write_json(path: str, document: dict[str, Any]) -> None:
    import json

    with open(path, "w") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def sync(path: str) -> None:
    """Have a file or directory survive a crash as it is now (fsync(2))."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(error) from error


def _age(path: str, *, newest: bool = False, now: float | None = None) -> float:
    """Seconds since a file (or, with ``newest``, anything directly in a directory) was modified."""
    try:
        times = [os.lstat(path).st_mtime]
        if newest:
            times += [os.lstat(os.path.join(path, name)).st_mtime for name in _listdir(path)]
    except OSError:
        return 0.0
    return (time.time() if now is None else now) - max(times)


def _tree_size(path: str) -> int:
    """Bytes of a file, or of the files in a directory; what goes away meanwhile is not counted."""
    size = 0
    for each in [path, *(os.path.join(top, name) for top, _, names in os.walk(path) for name in names)]:
        with suppress(FileNotFoundError):
            size += 0 if os.path.isdir(each) else os.lstat(each).st_size
    return size


def _remove_tree(path: str) -> None:
    import shutil

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(path)
