"""Which image a task runs in: resolved on the submit side, chosen on the node, named in the memo key."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

from parsl.dataflow.memoization import id_for_memo

from udi_core import (
    Config,
    ImageReference,
    ImageStore,
    ProgressSink,
    StoredImage,
    UsageError,
    ancestry,
    check_kind,
    choose_kind,
    ignore,
    load_config,
    parse_platform,
)

#: The keyword by which a task carries its image; a call may give a reference by it.
KEYWORD = "udi_image"
_LEVELS = ("v1", "v2", "v3", "v4")
#: Pulls that run at once; each of them uses two cores and one connection.
_PULLS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a decorator or a call asks for.

    Attributes:
        references: node kind -> image reference; ``"default"`` is for nodes of no other kind.
        variants: x86-64 levels (``"v2"`` … ``"v4"``) that the nodes of no named kind may have.
    """

    references: tuple[tuple[str, str], ...]
    platform: str = ""
    variants: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls, reference: str | Mapping[str, str], platform: str | None = None, variants: tuple[str, ...] = ()
    ) -> Wish:
        """Check what a user wrote.

        Raises:
                UsageError: a malformed reference or platform, an empty mapping, a kind that no node is of.
        """
        references = {"default": reference} if isinstance(reference, str) else dict(reference)
        if not references:
            raise UsageError("The mapping of node kinds to images is empty", "", 'Write {"default": "docker:…"}.')
        for kind, each in references.items():
            check_kind(kind)
            ImageReference.parse(each)
        for level in variants:
            if level not in _LEVELS:
                raise UsageError(f"{level!r} is no x86-64 level", "", f"Write {', '.join(_LEVELS)}.")
        if platform:
            parse_platform(platform)
        return cls(references=tuple(references.items()), platform=platform or "", variants=tuple(variants))

    def pull(self, store: ImageStore, config: Config, progress: ProgressSink = ignore) -> dict[str, StoredImage]:
        """Pull what nodes may choose among, by node kinds.

        Raises:
            UdiError: the first image that cannot be pulled.
        """
        from udi_core import pull_for_nodes  # the HTTP client, which workers must not load

        return pull_for_nodes(
            dict(self.references),
            store,
            config,
            progress,
            levels=self.variants,
            platform=parse_platform(self.platform) if self.platform else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An image for one kind of node.

    Attributes:
        kind: archspec's name of a microarchitecture, an x86-64 level (``v3``), or "default".
        magic: hexadecimal magic number of the image's Python, "" if it has none.
    """

    kind: str
    digest: str
    python: str
    version: str
    magic: str
    shell: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskImage:
    """A resolved wish; travels with the task, so it holds plain values only.

    Attributes:
        reference: as the user wrote it, for messages.
        store: the image store's directory.
        choices: the best fit for a node is chosen there.
    """

    reference: str
    store: str
    choices: tuple[Choice, ...]
    volumes: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    setup: str = ""
    workdir: str = ""
    python: str = ""

    def __repr__(self) -> str:
        return f"TaskImage({self.reference}@{self.choices[0].digest[7:19]})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Made once here and opened once there, however many tasks carry it.
        return _thaw, (frozen(self),)


@lru_cache(256)
def frozen(image: TaskImage) -> bytes:
    """A task's image as bytes; :func:`thawed` is the inverse."""
    values = {each.name: getattr(image, each.name) for each in fields(image) if each.name != "choices"}
    choices = [tuple(getattr(choice, each.name) for each in fields(choice)) for choice in image.choices]
    return pickle.dumps((values, choices), protocol=4)


def _thaw(data: bytes) -> TaskImage:
    # Parsl's pickler takes a function with a cache apart, which costs it 0.3 ms for each task.
    return thawed(data)


@lru_cache(256)
def thawed(data: bytes) -> TaskImage:
    """The image of some bytes; the same object for the same bytes."""
    values, choices = pickle.loads(data)  # noqa: S301 - inside a pickle that Parsl opened already
    names = [each.name for each in fields(Choice)]
    return TaskImage(choices=tuple(Choice(**dict(zip(names, each, strict=True))) for each in choices), **values)


def same_python(image: TaskImage, magic: bytes) -> bool:
    """Whether every Python that the task may meet runs bytecode of this magic number."""
    return not image.python and all(each.magic == magic.hex() for each in image.choices)


@id_for_memo.register(TaskImage)
def _id_for_memo(image: TaskImage, output_ref: bool = False) -> bytes:
    """What ran, not what it was called: a moved tag is another image, the same image by another tag is not."""
    return repr(
        (
            "udi-image",
            [(each.kind, each.digest) for each in image.choices],
            image.volumes,
            image.env,
            image.setup,
            image.workdir,
            image.python,
        )
    ).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What surrounds the tasks of a decorated app; see :func:`udi_parsl.image`."""

    volumes: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    setup: str = ""
    workdir: str = ""
    python: str = ""


class Resolver:
    """Resolves and pulls images in threads of its own; one pull for a thousand tasks.

    A tag is resolved once in the life of a process, so that all tasks of a run use one digest.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._futures: dict[Wish, Future[tuple[Choice, ...]]] = {}

    def choices(self, wish: Wish) -> Future[tuple[Choice, ...]]:
        """A future of the images; done already if all of them are in the store."""
        with self._lock:
            found = self._futures.get(wish)
            if found is None or (found.done() and found.exception() is not None):
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(_PULLS, thread_name_prefix="udi-pull")
                found = self._futures[wish] = self._pool.submit(_resolve, wish)
            return found

    def forget(self) -> None:
        """Resolve all tags anew from now on."""
        with self._lock:
            self._futures.clear()


#: The process's resolver.
RESOLVER = Resolver()


def task_image(wish: Wish, around: Surroundings, choices: tuple[Choice, ...]) -> TaskImage:
    """Put together what travels with a task."""
    return TaskImage(
        reference=wish.references[-1][1],
        store=load_config().store,
        choices=choices,
        volumes=around.volumes,
        env=tuple(sorted(around.env.items())),
        setup=around.setup,
        workdir=around.workdir,
        python=around.python,
    )


def _resolve(wish: Wish) -> tuple[Choice, ...]:
    config = load_config()
    found = wish.pull(ImageStore(config.store), config)
    # What fits only some nodes comes first, and "default" last.
    kinds = sorted(found, key=lambda kind: (kind == "default", not kind.startswith("v"), kind))
    return tuple(_choice(kind, found[kind]) for kind in kinds)


def _choice(kind: str, image: StoredImage) -> Choice:
    python = image.python
    return Choice(
        kind=kind,
        digest=image.digest,
        python=python.path if python else "",
        version=python.version if python else "",
        magic=python.magic if python else "",
        shell=image.shell,
    )


def choose(image: TaskImage) -> Choice:
    """The image for this node: of its microarchitecture, else of its x86-64 level or a lower one, else the default.

    archspec is imported only if there is something to choose.

    Raises:
        UsageError: no choice fits this node.
    """
    if [each.kind for each in image.choices] == ["default"]:
        return image.choices[0]
    node = ancestry()
    kind = choose_kind((each.kind for each in image.choices), node)
    if kind is None:
        kinds = ", ".join(each.kind for each in image.choices)
        raise UsageError(
            f"No image of {image.reference} fits this node",
            f"It is a {node[0]}; there are images for {kinds}.",
            'Add a "default" to the mapping.',
        )
    return next(each for each in image.choices if each.kind == kind)
