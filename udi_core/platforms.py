"""Which platform this node is, and which images run on it; imports next to nothing, for a warm start asks.

x86-64 levels are those of the x86-64 psABI ("micro-architecture levels"), by the names that Linux gives CPU
features in /proc/cpuinfo.
"""

from __future__ import annotations

import os

from udi_core import node_kind
from udi_core.errors import UsageError
from udi_core.image_config import Platform

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
}
# What a level needs beyond the one below it; Linux writes lzcnt as abm, and sse3 as pni.
_LEVELS = {
    "v2": "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3",
    "v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "v4": "avx512bw avx512cd avx512dq avx512f avx512vl",
}


def host_platform() -> Platform:
    """This machine's platform, on x86-64 with its level; ``v1`` is the empty variant."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    if architecture == "amd64":
        if os.environ.get(node_kind.VARIABLE):  # archspec knows what that kind has; loading it costs 30 ms
            variant = node_kind.level(node_kind.ancestry())
        else:
            variant = x86_level(_cpu_flags())
    return Platform(os="linux", architecture=architecture, variant=variant)


def x86_level(flags: frozenset[str]) -> str:
    """The highest level whose features, and those of all levels below, are there; "" for the lowest."""
    level = ""
    for name, needed in _LEVELS.items():
        if not flags.issuperset(needed.split()):
            break
        level = name
    return level


def _cpu_flags() -> frozenset[str]:
    try:
        # The first processor's are enough, and the kernel takes its time over hundreds of them.
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            text = file.read(16384)
    except OSError:
        return frozenset()
    line = text.partition(b"\nflags")[2].partition(b"\n")[0]
    return frozenset(line.partition(b":")[2].decode("ascii", "replace").split())


def parse_platform(text: str) -> Platform:
    """Parse ``os/architecture[/variant]``.

    Raises:
        UsageError: it is malformed.
    """
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(
            f"{text!r} is not a platform", "", "Write os/architecture[/variant], for example linux/amd64/v3."
        )
    return Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else "")


def can_run(image: Platform, node: Platform) -> bool:
    """Whether an image built for one platform runs on a node of another."""
    if (image.os, image.architecture) != (node.os, node.architecture):
        return False
    if image.architecture == "amd64":
        return level(image) <= level(node)
    if image.architecture == "arm":
        return level(image) <= level(node) or not image.variant
    return True


def level(platform: Platform) -> int:
    """The number of a variant: 3 for ``v3``; 1 where there is none."""
    digits = platform.variant.removeprefix("v")
    return int(digits) if digits.isdecimal() and len(digits) < 4 else 1
