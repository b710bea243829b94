"""What nodes of all kinds may choose among: pulled before a job starts, or looked up in the store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from udi_core.config import Config
from udi_core.errors import ImageAbsent, UdiError, UnsupportedImage, UsageError
from udi_core.image_config import Platform
from udi_core.node_kind import DEFAULT, ancestry, choose_kind, family, level, lineage
from udi_core.platforms import host_platform
from udi_core.progress import ProgressSink, ignore
from udi_core.reference import ImageReference
from udi_core.store import ImageStore, StoredImage

_LEVELS = ("v4", "v3", "v2", "v1")
# archspec's families -> architectures in Go's names, where they differ.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_Get = Callable[[ImageReference, Platform | None], StoredImage]
_Offered = Callable[[ImageReference], Collection[str] | None]


def pull_for_nodes(
    references: Mapping[str, str],
    store: ImageStore,
    config: Config,
    progress: ProgressSink = ignore,
    *,
    levels: Collection[str] | None = None,
    platform: Platform | None = None,
) -> dict[str, StoredImage]:
    """Pull what nodes of every kind may choose among.

    An index that is named for ``default`` is pulled for x86-64 levels, which become kinds of the result; so
    :func:`udi_core.node_kind.choose_kind` on the result's keys is all that a node has to do.

    Args:
        references: node kinds and image references (see :func:`udi_core.node_kind.parse_kinds`).
        levels: ``"v1"`` … ``"v4"``, to which this machine's own is added; default: all that the index has.  If there
            are none, this machine's image is for all nodes.
        platform: what to pull in the place of this machine's platform, and of that of each kind.

    Raises:
        UdiError: the first image that cannot be pulled, or a level that an index does not have.
    """
    from udi_core.pulling import pull  # the HTTP client, which a node does not need
    from udi_core.sources import open_source, x86_levels

    def get(reference: ImageReference, platform: Platform | None) -> StoredImage:
        return pull(reference, store, config, platform=platform, progress=progress)

    def offered(reference: ImageReference) -> Collection[str] | None:
        with open_source(reference, config) as source:
            return x86_levels(source)

    return _collect(references, get, store, _Wanted(levels, platform, config), offered)


def stored_for_nodes(references: Mapping[str, str], store: ImageStore, config: Config) -> dict[str, StoredImage]:
    """The same from the store, without network.

    Raises:
        ImageAbsent: a reference of which nothing is there.
    """
    return _collect(references, store.lookup, store, _Wanted(None, None, config), lambda reference: None)


def for_this_node(images: Mapping[str, str], what: str) -> str:
    """The value (a digest, a reference) that fits this node, of a mapping by node kinds; ``what`` is for the message.

    Raises:
        UsageError: none fits.
    """
    if len(images) == 1 and DEFAULT in images:
        return images[DEFAULT]  # nothing to choose, and archspec need not be asked
    node = ancestry()
    kind = choose_kind(images, node)
    if kind is None:
        raise UsageError(
            f"No image of {what} fits this node",
            f"It is a {node[0]}; there are images for {', '.join(images)}.",
            "Name one for default.",
        )
    return images[kind]


def platform_of(kind: str) -> Platform:
    """What to pull for nodes of a kind other than ``default``."""
    nodes = lineage(kind)
    architecture = _ARCHITECTURES.get(family(nodes), family(nodes))
    return Platform(architecture=architecture, variant=level(nodes))


def without_repeats(levels: Mapping[str, StoredImage]) -> dict[str, StoredImage]:
    """Levels, highest first, without those whose image the next lower one has as well; ``v1`` becomes ``default``."""
    kept: dict[str, StoredImage] = {}
    names = list(levels)
    for name, lower in zip(names, [*names[1:], ""], strict=False):
        if lower and levels[lower].digest == levels[name].digest:
            continue
        kept[DEFAULT if name == "v1" else name] = levels[name]
    return kept


class _Wanted:
    """Which platforms of an index.

    Attributes:
        platform: one for all nodes, or None.
        levels: names of levels, highest first.
        optional: the index may lack some of them.
    """

    def __init__(self, levels: Collection[str] | None, platform: Platform | None, config: Config) -> None:
        self.platform, self.optional = platform, levels is None
        host = host_platform()
        alone = platform is not None or bool(config.platform) or host.architecture != "amd64"
        #: This machine's image is for the nodes of other kinds, of whatever level.
        self.default = alone or not (self.optional or levels)
        if levels is None:
            levels = () if alone else _LEVELS
        elif levels and not alone:
            levels = {*levels, host.variant or _LEVELS[-1]}
        self.levels = sorted(levels, reverse=True)


def _collect(
    references: Mapping[str, str], get: _Get, store: ImageStore, wanted: _Wanted, offered: _Offered
) -> dict[str, StoredImage]:
    found: dict[str, StoredImage] = {}
    # The default first: what is named for ``v3`` wins over what the default's index has for that level.
    for kind, text in sorted(references.items(), key=lambda each: each[0] != DEFAULT):
        reference = ImageReference.parse(text)
        if kind == DEFAULT:
            found.update(_every_level(reference, get, store, wanted, offered))
        else:
            found[kind] = get(reference, wanted.platform or platform_of(kind))
    return found


def _every_level(
    reference: ImageReference, get: _Get, store: ImageStore, wanted: _Wanted, offered: _Offered
) -> dict[str, StoredImage]:
    found: dict[str, StoredImage] = {}
    refused: UdiError | None = None
    levels: Collection[str] = wanted.levels
    if wanted.optional and levels:
        # Each level that is asked for costs a registry several requests, which some count, and most indexes have one.
        levels = sorted(offered(reference) or levels, reverse=True)
    for name in levels:
        try:
            image = get(reference, Platform(variant="" if name == _LEVELS[-1] else name))
        except (UnsupportedImage, ImageAbsent) as error:
            if not wanted.optional:
                raise
            refused = error
            continue
        tag = store.tag(reference)
        if tag is None or tag.digest == image.digest or tag.digest.startswith(("file:", "dir:")):
            return {DEFAULT: image}  # no index: there is nothing to choose
        found[name] = image
    found = without_repeats(found)
    if wanted.default:
        found[DEFAULT] = get(reference, wanted.platform)
    if not found and refused is not None:
        raise refused
    return found
