"""What is mounted where for a task: pure, from a list of targets to a list of steps.

An image is read-only, so a mount point that it lacks cannot be made in it.  The directory that lacks one is
*opened*: replaced by an empty tmpfs in which the image's entries are shown one by one, and which is made
read-only at the end.  Each mount costs bubblewrap 0.1 ms or more (it reads the mount table again for each), so an
image that has every mount point is shown by a single mount, only directories that must be are opened, and many
files are shown by symbolic links into a second mount of the whole image.
"""

from __future__ import annotations

from udi_core.errors import LaunchError
from udi_core.tree import Tree, View, resolve
from udi_core.values import dataclass

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Where the whole image is shown a second time, if a directory with many files had to be opened.
HIDDEN = "/.udi"
_MOST_FILES = 8


@dataclass(frozen=True, slots=True)
class Mount:
    """What is shown at a target.

    Attributes:
        kind: ``bind``, ``ro-bind``, ``dev-bind``, ``tmpfs`` (private and empty) or ``dev`` (a minimal /dev).
        source: path of the node; "" for ``tmpfs`` and ``dev``.
        origin: what asked for it, for errors.
        bound: whether the site's policy binds it.
    """

    kind: str
    source: str = ""
    origin: str = ""
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done to make the view.

    Attributes:
        kind: that of :class:`Mount`, or ``symlink`` (``source`` is where it points) or ``remount-ro``.
    """

    kind: str
    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a process must do to become a task.

    Attributes:
        server: process whose user and mount namespaces have the image, or 0.
        anchor: an existing directory on which the new root is put together.
        steps: the view, from :func:`udi_core.layout.steps`.
        env: the task's environment.
        workdir: in the task's view.
    """

    server: int
    anchor: str
    steps: tuple[Step, ...]
    command: tuple[str, ...]
    env: Mapping[str, str]
    workdir: str
    die_with_parent: bool


def place(mounts: Mapping[str, Mount], image: Tree, node: Tree) -> dict[str, Mount]:
    """Mounts by the place where they really are: symbolic links of the image and of volumes are followed.

    The system's own mounts (without ``origin``) stay where they are asked for, whatever the image has there.  The
    result is sorted so that a mount comes before those that lie in it.

    Raises:
        LaunchError: a source does not exist, or there is no place for it and none can be made.
    """
    placed: dict[str, Mount] = {}
    sources: dict[str, str] = {}
    view = View(image, node, sources)
    for target in sorted(mounts, key=_components):
        mount, where = mounts[target], target
        if mount.origin:
            where = resolve(view, target)
            if mount.source:
                _check(mount, target, where, view, node)
        placed[where] = mount
        sources[where] = mount.source
    return {where: placed[where] for where in sorted(placed, key=_components)}


def _components(path: str) -> list[str]:
    return path.split("/")


def _check(mount: Mount, target: str, where: str, view: View, node: Tree) -> None:
    source = node.kind(resolve(node, mount.source))

    def wrong(details: str, hint: str = "") -> LaunchError:
        return LaunchError(f"{mount.origin} cannot be mounted", details, hint)

    if not source:
        raise wrong(f"{mount.source} does not exist on this node, or you may not see it.", "Make it, or correct it.")
    there = view.kind(where)
    if there and (there == "dir") != (source == "dir"):
        kinds = ("a directory", "a file") if source == "dir" else ("a file", "a directory")
        raise wrong(f"{mount.source} is {kinds[0]}, and {target} is {kinds[1]} in the image.", "Choose another target.")
    if not there and view.is_node_s(where) and not where.startswith("/etc/"):
        raise wrong(
            f"{target} lies in another volume, at {view.parent(where)}, and does not exist there.",
            "Make it on the node: a mount point in a volume is not made for you.",
        )
    parent = where.rpartition("/")[0]
    while parent:
        if view.kind(parent) == "file":
            raise wrong(f"{parent} is a file in the image.", "Choose another target.")
        parent = parent.rpartition("/")[0]


def steps(placed: Mapping[str, Mount], image: Tree, node: Tree, root: str) -> Iterator[Step]:
    """What to do, in order, so that ``root``, which shows ``image``, is seen with ``placed`` over it.

    What is placed at ``/etc`` counts as a directory of the image: it is opened if a mount point is missing in it.
    """
    base = {"/etc": placed["/etc"].source} if "/etc" in placed else {}
    merged = View(image, node, base)
    opened = _opened(placed, image, merged, base)
    wide = {path for path in opened if len(_files(path, placed, merged)) > _MOST_FILES}
    if wide:
        opened.add("/")  # or there is no place for the second mount
    if "/" not in opened:
        yield Step("ro-bind", root, "/")
    for path in sorted({*opened, *placed}, key=_components):
        if path in opened:
            yield from _open(path, placed, merged, root, base, path in wide)
        else:
            yield Step(placed[path].kind, placed[path].source, path)
        if path == "/" and wide:
            yield Step("ro-bind", root, f"{HIDDEN}/image")
            if "/etc" in wide:
                yield Step("ro-bind", base["/etc"], f"{HIDDEN}/etc")
    for path in sorted(opened, key=_components, reverse=True):
        yield Step("remount-ro", "", path)


def _opened(placed: Mapping[str, Mount], image: Tree, merged: Tree, base: Mapping[str, str]) -> set[str]:
    """The directories of the image in which a mount point is missing."""
    found = set()
    for target in placed:
        parts = target.split("/")
        for depth in range(1, len(parts)):
            parent, child = "/".join(parts[:depth]) or "/", "/".join(parts[: depth + 1])
            if parent in placed and parent not in base:
                break  # the rest lies in a volume
            # A copy that takes the place of the image's own needs a mount point as well.
            tree = image if child in base else merged
            if tree.kind(child) not in ("dir", "file"):
                found.add(parent)
                if child not in base:
                    break  # the rest is made below it
    return found


def _files(path: str, placed: Mapping[str, Mount], merged: Tree) -> list[str]:
    prefix = path.rstrip("/") + "/"
    return [name for name in merged.names(path) if merged.kind(prefix + name) == "file" and prefix + name not in placed]


def _open(
    path: str, placed: Mapping[str, Mount], merged: Tree, root: str, base: Mapping[str, str], is_wide: bool
) -> Iterator[Step]:
    prefix = path.rstrip("/") + "/"
    in_etc = prefix.startswith("/etc/") and "/etc" in base
    if path != "/":
        yield Step("tmpfs", "", path)
    for name in merged.names(path):
        child = prefix + name
        if child in placed:
            continue
        kind = merged.kind(child)
        if kind == "link":
            yield Step("symlink", merged.readlink(child), child)
        elif kind == "file" and is_wide:
            yield Step("symlink", HIDDEN + ("" if in_etc else "/image") + child, child)
        elif kind:
            yield Step("ro-bind", base["/etc"] + child[len("/etc") :] if in_etc else root + child, child)
