"""A kernel in a warm image against the same ipykernel on the host: from the start until it answers.

``python -m benchmarks.jupyter``, as root or as an ordinary user.  Both kinds take turns; medians.  Status 1 if the
target is missed.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from udi_jupyter.kernelspec import KernelSettings, install

from benchmarks.measure import need, quiet_machine, verdict
from tests.support import images, kernels, user

RUNS = 9


def main() -> int:
    need("tar2sqfs", *images.TOOLS)
    directory = tempfile.mkdtemp(prefix="udi-bench-")
    os.environ |= {"UDI_STORE": f"{directory}/store", "UDI_NODE_DIR": f"{directory}/node"}
    os.environ |= {"JUPYTER_DATA_DIR": f"{directory}/data", "JUPYTER_RUNTIME_DIR": f"{directory}/runtime"}
    os.environ |= {"IPYTHONDIR": f"{directory}/ipython", "XDG_CACHE_HOME": f"{directory}/cache"}
    # Python writes no bytecode where this is set, and every start would compile anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        own = install(KernelSettings(image=kernels.kernel_image(Path(directory, "layout"))), name="own").name
        lent = install(KernelSettings(image=f"oci:{images.image('numeric').path}:latest"), name="lent").name
        return _measure({"host": _host(directory), "image": own, "lent": lent})
    finally:
        user.clean_up(directory)


def _host(directory: str) -> str:
    """A kernelspec of the ipykernel that runs here."""
    from ipykernel.kernelspec import write_kernel_spec

    KernelSpecManager().install_kernel_spec(write_kernel_spec(Path(directory, "spec")), "host", user=True)
    return "host"


def _measure(names: dict[str, str]) -> int:
    seconds: dict[str, list[float]] = {kind: [] for kind in names}
    for run in range(RUNS + 1):
        for kind, name in names.items():
            spent = _start(name)
            if run:  # the first one pulls, mounts, and fills the page cache
                seconds[kind].append(spent)
    medians = {kind: statistics.median(each) for kind, each in seconds.items()}
    print(f"a kernel's start until it answers; {quiet_machine()}; medians of {RUNS}, taking turns")
    for kind, each in seconds.items():
        print(f"  {kind:6} {medians[kind]:.2f} s (best {min(each):.2f}, worst {max(each):.2f})")
    reached = [
        verdict("in the image, above the host", medians["image"] - medians["host"], 0.6, " s"),
        verdict("with a lent ipykernel, above the host", medians["lent"] - medians["host"], 0.6, " s"),
    ]
    return 0 if all(reached) else 1


def _start(name: str) -> float:
    begin = time.perf_counter()
    manager = KernelManager(kernel_name=name)
    # What kernels print of themselves would stand between the figures.
    with open(os.devnull, "wb") as nothing:
        manager.start_kernel(stdout=nothing, stderr=nothing)
    try:
        with kernels.connected(manager):
            return time.perf_counter() - begin
    finally:
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    sys.exit(main())
