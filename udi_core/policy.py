"""The site's rules: which registries images may come from, and what may be mounted where.

They are read from the ``policy`` section of the site's file only; the user's file and the environment cannot loosen
them.  UDI runs with the rights of its user and gives none beyond them, so the policy is a site's way to keep its
users on paths that it supports, not a wall against a user who starts bubblewrap by hand.
"""

from __future__ import annotations

import os.path

from udi_core.errors import ConfigError, PolicyError
from udi_core.tree import is_below, resolve
from udi_core.values import dataclass, names

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from udi_core.reference import ImageReference
    from udi_core.tree import Tree
    from udi_core.volumes import Volume


#: What a workflow engine or a notebook needs of Slurm, and ``udi`` itself for other images.
BATCH_CLIENTS = ("sacct", "salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun", "sstat", "udi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is allowed; by default everything that the user could do anyway.

    Attributes:
        registries: ``host/repository`` patterns (``ghcr.io/lab/*``) of which one must match; empty for all.
        denied_registries: patterns of which none may match.
        local_images: whether images may come from files and directories, which no registry vouches for.
        volume_sources: directories of which one must hold a volume's source; empty for all.  The directories that a
            task sees unasked (its home, its current directory) need not lie there.
        denied_sources: directories of which a task must not see anything: no volume may lie in one, or hold one.
        denied_targets: directories of the image over which, and in which, no volume may be mounted, whatever symbolic
            links of the image lead there.
        host_programs: programs of the node that an image may call where its user asks for it; empty for none.
    """

    registries: tuple[str, ...] = ()
    denied_registries: tuple[str, ...] = ()
    local_images: bool = True
    volume_sources: tuple[str, ...] = ()
    denied_sources: tuple[str, ...] = ()
    denied_targets: tuple[str, ...] = ()
    host_programs: tuple[str, ...] = BATCH_CLIENTS

    @property
    def is_choosy(self) -> bool:
        """Whether some images may not be used."""
        return bool(self.registries or self.denied_registries or not self.local_images)


def parse_policy(value: Any, origin: str) -> Policy:
    """Read the ``policy`` section.

    Raises:
        ConfigError: a key is unknown, or its value is of the wrong type.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{origin} sets policy to a wrong value", "A mapping is needed.")
    known = names(Policy)
    found: dict[str, Any] = {}
    for key, given in value.items():
        if key not in known:
            raise ConfigError(
                f"{origin} sets an unknown key", f"The key policy.{key} is not known.", f"Known: {', '.join(known)}"
            )
        if key == "local_images":
            right = isinstance(given, bool)
        else:
            right = isinstance(given, list) and all(isinstance(each, str) for each in given)
        if not right:
            raise ConfigError(f"{origin} sets policy.{key} to a wrong value", repr(given))
        found[key] = tuple(given) if isinstance(given, list) else given
    return Policy(**found)


def check_reference(policy: Policy, reference: ImageReference, mirrors: Iterable[str] = ()) -> None:
    """Whether an image may be used, and whether it may come from ``mirrors`` that the site did not name.

    Raises:
        PolicyError: the site forbids it.
    """
    if reference.transport == "id":
        return
    if reference.transport != "docker":
        if not policy.local_images:
            raise PolicyError(
                f"The site does not allow images from {reference.transport}:",
                f"{reference} comes from no registry.",
                "Push the image to a registry that the site allows: udi config show",
            )
        return
    for place in (reference.registry, *(each.rpartition("://")[2].rstrip("/") for each in mirrors)):
        name = f"{place}/{reference.repository}"
        if policy.registries and not _matches(name, policy.registries):
            raise PolicyError(
                f"The site does not allow images from {name}",
                f"Allowed are: {', '.join(policy.registries)}.",
                "Push the image to one of these.",
            )
        if _matches(name, policy.denied_registries):
            raise PolicyError(
                f"The site does not allow images from {name}",
                f"Denied are: {', '.join(policy.denied_registries)}.",
                "Use another image, or ask the site.",
            )


def check_source(policy: Policy, volume: Volume, node: Tree) -> None:
    """Whether what a volume shows of the node may be shown.

    Raises:
        PolicyError: the site forbids it.
    """
    if policy.volume_sources and not _lies_in(volume.source, policy.volume_sources, node):
        raise PolicyError(
            f"The site does not allow the volume {volume}",
            f"Sources must lie in: {', '.join(policy.volume_sources)}.",
            "Copy what you need there.",
        )
    denied = denied_source(policy, volume.source, node)
    if denied:
        raise PolicyError(
            f"The site does not allow the volume {volume}",
            f"It would show {denied}, which must not be mounted.",
            "Mount what you need beside it.",
        )


def denied_source(policy: Policy, path: str, node: Tree) -> str:
    """The denied directory that a path lies in, or that it would show; "" if there is none."""
    if not policy.denied_sources:
        return ""
    real = resolve(node, path)
    return next((each for each in policy.denied_sources if _touch(real, resolve(node, each))), "")


def check_target(policy: Policy, what: str, target: str) -> None:
    """Whether ``what`` may be mounted at a place of the image.

    Raises:
        PolicyError: the site forbids it.
    """
    if denied_target(policy, target):
        raise PolicyError(
            f"The site does not allow {what[:1].lower()}{what[1:]}",
            f"Nothing may be mounted over, or in: {', '.join(policy.denied_targets)}.",
            "Choose another target.",
        )


def denied_target(policy: Policy, target: str) -> bool:
    """Whether a place of the image lies in a denied directory, or would cover one."""
    return any(_touch(target, os.path.normpath(each)) for each in policy.denied_targets)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """``ghcr.io`` alone stands for all that is in it."""
    if not patterns:
        return False
    from fnmatch import fnmatchcase  # imports re, which a site without such rules need not pay for

    return any(fnmatchcase(name, each) or name.startswith(each.rstrip("/") + "/") for each in patterns)


def _lies_in(path: str, directories: tuple[str, ...], node: Tree) -> bool:
    # Resolved on both sides: a symlink in an allowed directory must not lead out of it, and that may itself be one.
    real = resolve(node, path)
    return any(is_below(real, resolve(node, each)) for each in directories)


def _touch(one: str, other: str) -> bool:
    """Whether one path lies in the other, or is the same."""
    return is_below(one, other) or is_below(other, one)
