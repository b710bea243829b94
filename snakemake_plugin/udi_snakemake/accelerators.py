"""What ``--nv`` and ``--rocm`` bring from the host into an image: driver libraries and their tools.  Pure.

A driver's user-space libraries must match the kernel module of the node, so no image can hold them.  The real program
lists their names in ``nvliblist.conf`` and ``rocmliblist.conf``; these patterns cover the same names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from udi_snakemake.environment import LIBRARIES

#: Where a driver's tools appear.  Not in /usr/bin: one more name there would mean one mount for each that is there.
PROGRAMS = "/.singularity.d/programs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """``libraries`` matches sonames; ``programs`` are its tools."""

    flag: str
    libraries: re.Pattern[str]
    programs: tuple[str, ...]


NVIDIA = Vendor(
    flag="--nv",
    libraries=re.compile(r"lib(?:cuda|cudadebugger|nvcuvid|nvoptix|OpenCL|nvidia-[\w.+-]+|[\w.+-]+_nvidia)\.so[\d.]*"),
    programs=("nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"),
)
ROCM = Vendor(
    flag="--rocm",
    libraries=re.compile(
        r"lib(?:amd_comgr|amdhip64|hsa-runtime64|hsakmt|hip\w+|roc\w+|hsa-\w+|drm_amdgpu|MIOpen|rccl)\.so[\d.]*"
    ),
    programs=("rocminfo", "rocm-smi", "rocm_agent_enumerator"),
)


def shares(vendor: Vendor, ldconfig: str, find_program: Callable[[str], str | None]) -> list[tuple[str, str]]:
    """(path on the host, path in the image) of all that a vendor's driver has on this node.

    Args:
        ldconfig: output of ``ldconfig -p``: ``libcuda.so.1 (libc6,x86-64) => /usr/lib/…/libcuda.so.1`` lines.
    """
    found: dict[str, str] = {}
    for line in ldconfig.splitlines():
        soname, arrow, path = line.strip().partition(" => ")
        name, _, tags = soname.partition(" ")
        # A 32-bit library of the same name would take the place of the right one.
        if arrow and vendor.libraries.fullmatch(name) and ("64" in tags or "(libc6)" not in tags):
            found.setdefault(f"{LIBRARIES}/{name}", path)
    for program in vendor.programs:
        where = find_program(program)
        if where is not None:
            found[f"{PROGRAMS}/{program}"] = where
    return [(source, target) for target, source in found.items()]
