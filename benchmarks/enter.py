"""Entering a warm image: by a running Python process, and by the command; and many processes at once in a fresh one.

``python -m benchmarks.enter``, as root or as an ordinary user.  Exit code 1 if a target is missed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

from benchmarks.measure import median_ms, need, quiet_machine, verdict
from tests.support import images, user
from udi_core import Host, ImageStore, LaunchSpec, NodeMounts, _process, build, find, load_config

PROCESSES = 64


def main() -> int:
    need("tar2sqfs", *images.TOOLS)
    directory = tempfile.mkdtemp(prefix="udi-bench-")
    os.environ |= {"UDI_STORE": f"{directory}/store", "UDI_NODE_DIR": f"{directory}/node"}
    # Python writes no bytecode where this is set, and every start would compile UDI anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        return _measure(f"oci:{images.image('base').path}:latest")
    finally:
        user.clean_up(directory)


def _measure(reference: str) -> int:
    config = load_config()
    image = find(reference, config)
    udi = [os.path.join(os.path.dirname(sys.executable), "udi")]
    seconds, mounts = _stampede([*udi, "run", reference, "--", "/bin/true"], udi)
    mounted = NodeMounts(config, ImageStore(config.store)).mount(image)

    def enter() -> None:
        spec = LaunchSpec(command=("/bin/true",))
        launch = build(spec, mounted, config, Host.observe(mounted))
        _process.spawn(launch.argv, env=launch.env, pass_fds=launch.pass_fds).wait()

    bare = median_ms(lambda: _process.spawn(["/bin/true"]).wait())
    python = median_ms(lambda: _process.spawn([sys.executable, "-c", "pass"]).wait())
    inside = median_ms(enter)
    command = median_ms(lambda: _process.spawn([*udi, "run", reference, "--", "/bin/true"]).wait())
    print(f"/bin/true in a warm image, {mounted.backend} mount; {quiet_machine()}; medians of 50")
    print(f"  bare fork and exec {bare:.1f} ms; python -c pass {python:.1f} ms")
    reached = [
        verdict("argv built in a running Python process", inside, 6, " ms", peer="bare fork and exec", beside=bare),
        verdict("udi run", command, 50, " ms", peer="python -c pass", beside=python),
        verdict(f"mounts made by {PROCESSES} processes at once", mounts, 1),
    ]
    print(f"  all {PROCESSES} ended well, in {seconds:.1f} s")
    mounted.close()
    return 0 if all(reached) else 1


def _stampede(command: list[str], udi: list[str]) -> tuple[float, int]:
    """Start many processes in an image that is not mounted yet; seconds, and mounts that there are then."""
    begin = time.monotonic()
    started = [_process.spawn(command) for _ in range(PROCESSES)]
    statuses = [each.wait() for each in started]
    seconds = time.monotonic() - begin
    if any(statuses):
        raise SystemExit(f"{sum(map(bool, statuses))} of {PROCESSES} processes failed")
    return seconds, len(json.loads(_process.run([*udi, "node", "status", "--json"]).stdout))


if __name__ == "__main__":
    sys.exit(main())
