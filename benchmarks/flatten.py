"""Pull and flatten against skopeo + umoci + mksquashfs, in one run; prints the ratios beside the targets.

``python -m benchmarks.flatten`` as root, who alone can run debootstrap and unpack owners.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.make_image import contents, make
from benchmarks.measure import Cost, against, measure, need, quiet_machine, verdict
from tests.support.registry import running_registry

ROUNDS = 3
LAYERS, MIN_CONTENT, MIN_ENTRIES = 3, 800_000_000, 25_000
PEER = "skopeo, umoci, mksquashfs"
CACHE = Path(".cache/bench").resolve()


def _peer(source: str, scratch: Path) -> Cost:
    """What one would do by hand; written as a script so that it is measured as one command."""
    script = (
        'set -e; skopeo copy -q --src-tls-verify=false "docker://$1" "oci:$2/oci:x";'
        ' umoci unpack --image "$2/oci:x" "$2/bundle";'
        ' mksquashfs "$2/bundle/rootfs" "$2/image.squashfs" -quiet -no-progress -comp zstd -Xcompression-level 3'
    )
    return measure(["sh", "-c", script, "sh", source, str(scratch)])


def _ours(source: str, scratch: Path) -> Cost:
    os.environ["UDI_STORE"] = str(scratch / "store")
    return measure([sys.executable, "-m", "udi_core", "pull", "--quiet", f"docker://{source}"])


def main() -> int:
    need("skopeo", "umoci", "mksquashfs", "docker-registry", "debootstrap", root=True)
    layout = make(CACHE / "image")
    entries, content = contents(layout)
    runs: dict[str, list[Cost]] = {"peer": [], "udi": []}
    size = 0
    with tempfile.TemporaryDirectory(dir=CACHE) as top, running_registry(Path(top)) as registry:
        source = registry.push(layout, "bench/image").removeprefix("docker://").removeprefix("docker:")
        for number in range(ROUNDS):
            for name, command in (("peer", _peer), ("udi", _ours)):
                scratch = Path(top, f"{name}{number}")
                scratch.mkdir()
                runs[name].append(command(source, scratch))
                if name == "udi":
                    size = next(scratch.glob("store/images/sha256/*/*/image.squashfs")).stat().st_size
                shutil.rmtree(scratch)
    print(f"pull + flatten of {content / 1e6:.0f} MB in {entries:,} entries of {LAYERS} layers, medians of {ROUNDS}")
    print(f"  {size / 1e6:.0f} MB squashfs; {quiet_machine()}")
    print(f"  {'':10} {'wall s':>8} {'CPU s':>8} {'written MB':>11} {'memory MB':>10}")
    middle = {}
    for name, costs in runs.items():
        middle[name] = Cost(
            **{
                field: sorted(getattr(cost, field) for cost in costs)[ROUNDS // 2]
                for field in ("wall", "cpu", "written", "memory")
            }
        )
        cost = middle[name]
        print(f"  {name:10} {cost.wall:8.2f} {cost.cpu:8.2f} {cost.written / 1e6:11.0f} {cost.memory / 1e6:10.0f}")
    ours, peer = middle["udi"], middle["peer"]
    reached = [
        against("wall", ours.wall, peer.wall, 0.40, " s", peer=PEER),
        against("CPU", ours.cpu, peer.cpu, 0.45, " s", peer=PEER),
        against("bytes written", ours.written / 1e6, size / 1e6, 1.15, " MB", peer="the squashfs"),
        verdict("peak memory", ours.memory / 1e6, 250, " MB", peer=PEER, beside=peer.memory / 1e6),
    ]
    if content < MIN_CONTENT or entries < MIN_ENTRIES:
        print(f"  the image is too small: {MIN_CONTENT / 1e6:.0f} MB and {MIN_ENTRIES:,} entries are asked for")
        return 1
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
