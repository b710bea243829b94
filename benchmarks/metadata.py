"""Metadata operations on a shared file system that starting Python tasks costs: from an image, from a plain tree.

``python -m benchmarks.metadata``.  The shared file system is tests/support/sharedfs.py: it counts each operation, and
its client keeps names and attributes for five minutes, as one does that holds locks on them (Lustre's, for example).
The node is cold: nothing of the image is mounted or known.  Every task imports numpy, scipy and pandas.  The image is
the same in both: one squashfs entered by ``udi run`` and by Parsl's agent, and the tree that it holds, unpacked,
entered by bubblewrap.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measure import need, quiet_machine, verdict
from tests.support import images, user
from tests.support.sharedfs import SharedFileSystem, shared_file_system
from udi_core import require_tool, run

TASKS = 64
_CLIENT = 300.0
_IMPORTS = "import numpy, scipy.stats, scipy.optimize, pandas"
_PACKAGES = ("numpy", "scipy", "pandas")


def main() -> int:
    """Count; exit code 0 if the target is met."""
    need("bwrap", "tar2sqfs", "rdsquashfs", "fusermount3", "apt-get")
    print(quiet_machine())
    with tempfile.TemporaryDirectory(prefix="udi-metadata-", dir="/tmp") as scratch:
        top = Path(scratch)
        try:
            return _main(top)
        finally:
            user.clean_up(str(top / "node"))


def _main(top: Path) -> int:
    shared, backing = top / "shared", top / "backing"
    env = {**os.environ, "UDI_STORE": str(shared / "store"), "UDI_NODE_DIR": str(top / "node"), "HOME": str(top)}
    udi = (sys.executable, "-m", "udi_core")
    layer = images.python_layer(*_PACKAGES, name="numeric")
    reference = f"oci:{images.derive(images.image('numeric'), top / 'layout', [layer]).path}"
    with shared_file_system(backing, shared):
        run([*udi, "pull", "-q", reference], env=env)
        squashfs = run([*udi, "path", reference], env=env).stdout.decode().strip()
    tree = backing / "tree"
    unpack = require_tool("rdsquashfs", reason="unpack the image")
    run([unpack, "-q", "-C", "-u", "/", "-p", str(tree), str(backing / Path(squashfs).relative_to(shared))])
    files = sum(len(names) for _, _, names in os.walk(tree))
    bwrap = require_tool("bwrap", reason="enter the tree")

    def from_image(_: SharedFileSystem) -> None:
        run([*udi, "run", reference, "--", "python3", "-c", _IMPORTS], env=env, cwd=str(top))

    def from_tree(mounted: SharedFileSystem) -> None:
        root = f"{mounted.path}/tree"
        run([bwrap, "--bind", root, "/", "--dev", "/dev", "--proc", "/proc", "python3", "-c", _IMPORTS], cwd="/")

    print(f"image of {files} files; metadata operations on the shared file system:")
    found = {}
    for name, task in (("image", from_image), ("tree", from_tree)):
        for count in (1, TASKS):
            with shared_file_system(backing, shared, lifetime=_CLIENT) as mounted:
                found[name, count] = _count(mounted, task, count)
                kinds = sorted(mounted.counts().items(), key=lambda item: -item[1])
                user.clean_up(str(top / "node"))
            details = ", ".join(f"{kind} {number}" for kind, number in kinds[:8])
            print(f"  {name:6} {count:3} tasks {found[name, count]:8}   ({details})", flush=True)
    ratio = found["tree", TASKS] / found["image", TASKS]
    print(f"the tree costs {ratio:.0f} times as many")
    return 0 if verdict(f"{TASKS} tasks from an image, operations", found["image", TASKS], 50) else 1


def _count(mounted: SharedFileSystem, task: Callable[[SharedFileSystem], None], count: int) -> int:
    mounted.reset()
    with ThreadPoolExecutor(max_workers=4) as pool:
        for done in [pool.submit(task, mounted) for _ in range(count)]:
            done.result()
    return mounted.metadata()


if __name__ == "__main__":
    sys.exit(main())
