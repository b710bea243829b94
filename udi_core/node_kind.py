"""What kind of machine this node is, in archspec's names, and which of several images is the one for it.

A kind is the name of a microarchitecture (``haswell``, ``mic_knl``, ``zen3``), of an x86-64 level (``v2`` … ``v4``,
or ``x86_64_v3``), or ``default``, which every node is.  ``UDI_NODE_KIND`` says what a node is where archspec cannot
know, or where a test pretends; ``archspec cpu`` prints what it finds.
"""

from __future__ import annotations

import os

from udi_core.errors import UsageError

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

DEFAULT = "default"
VARIABLE = "UDI_NODE_KIND"


def ancestry(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """All kinds that this node is, the most special first: ``("haswell", "ivybridge", …, "x86_64_v3", …)``.

    Costs 30 ms the first time: archspec reads its table and ``/proc/cpuinfo``.

    Raises:
        UsageError: ``UDI_NODE_KIND`` is not a microarchitecture.
    """
    said = (os.environ if environ is None else environ).get(VARIABLE)
    if said:
        check_kind(said, VARIABLE)
        return lineage(said)
    import archspec.cpu

    return _names(archspec.cpu.host())


def lineage(kind: str) -> tuple[str, ...]:
    """All kinds that a node of ``kind`` is, the most special first; ``kind`` must be one and not ``default``."""
    import archspec.cpu

    return _names(archspec.cpu.TARGETS[_canonical(kind)])


def _names(node: Any) -> tuple[str, ...]:
    # Whoever has more ancestors is the more special one; archspec lists them parent by parent.
    return (node.name, *(each.name for each in sorted(node.ancestors, key=lambda each: -len(each.ancestors))))


def check_kind(kind: str, where: str = "") -> None:
    """Refuse a kind that no node can be.

    Raises:
        UsageError: neither archspec's name, nor a level, nor ``default``.
    """
    if kind == DEFAULT and where != VARIABLE:
        return
    import difflib

    import archspec.cpu

    if _canonical(kind) in archspec.cpu.TARGETS:
        return

    near = difflib.get_close_matches(kind, archspec.cpu.TARGETS, n=1)
    raise UsageError(
        f"{kind!r} is not a kind of node",
        f"{where} names it." if where else "",
        f"Did you mean {near[0]!r}?" if near else "Give archspec's name (archspec cpu prints it), or v2, v3, v4.",
    )


def choose_kind(kinds: Iterable[str], node: tuple[str, ...]) -> str | None:
    """The one of ``kinds`` that fits a node of that :func:`ancestry` best; None if none does."""
    offered = {_canonical(each): each for each in kinds}
    return next((offered[name] for name in (*node, DEFAULT) if name in offered), None)


def family(node: tuple[str, ...]) -> str:
    """What all nodes of an architecture have in common: ``x86_64``, ``aarch64``, ``ppc64le``."""
    return node[-1]


def level(node: tuple[str, ...]) -> str:
    """The x86-64 level of a node of that :func:`ancestry`: ``v4`` … ``v2``, or "" for the lowest."""
    return next((name.removeprefix("x86_64_") for name in node if name.startswith("x86_64_v")), "")


def parse_kinds(texts: Iterable[str]) -> dict[str, str]:
    """``KIND=REF`` and ``REF`` (which is for ``default``) as a mapping of kinds to references, in that order.

    Raises:
        UsageError: a kind that does not exist, or one that is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        kind, reference = split_kind(text)
        if kind:
            check_kind(kind, repr(text))
        kind = kind or DEFAULT
        if kind in found:
            raise UsageError(f"Two images are for {kind} nodes", f"{found[kind]}\n{reference}", "One is enough.")
        found[kind] = reference
    return found


def split_kind(text: str) -> tuple[str, str]:
    """The kind, or "", and the reference of ``[KIND=]REF``."""
    kind, equals, reference = text.partition("=")
    # A reference may hold "=" in a path, but no kind holds what a path, registry or tag needs.
    if equals and kind.replace("_", "").replace(".", "").isalnum():
        return kind, reference
    return "", text


def _canonical(kind: str) -> str:
    """archspec's name of a kind: ``v3`` is ``x86_64_v3``, and ``v1`` is ``x86_64``."""
    if kind == "v1":
        return "x86_64"
    return f"x86_64_{kind}" if kind in ("v2", "v3", "v4") else kind
