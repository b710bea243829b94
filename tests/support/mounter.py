"""A process that mounts an image and keeps its lease: ``python mounter.py SETTINGS [COMMAND…]``.

SETTINGS is JSON: ``squashfs`` and any field of Config.  It prints one line of JSON (what it got, or the error's
parts), then becomes COMMAND, as a task does.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from udi_core.config import Config
from udi_core.errors import UdiError
from udi_core.image_config import ImageConfig
from udi_core.mount import NodeMounts
from udi_core.store import StoredImage


def stored(squashfs: str, digest: str = "sha256:" + "5" * 64, **config: Any) -> StoredImage:
    """A squashfs as if the store held it."""
    return StoredImage(
        digest=digest,
        squashfs=squashfs,
        size=os.path.getsize(squashfs),
        squashfs_sha256="",
        config=ImageConfig(**config),
        created="2024-01-01T00:00:00Z",
        reference="docker://test.invalid/image:1",
    )


def main(settings: str, *command: str) -> int:
    """See the module."""
    chosen = json.loads(settings)
    squashfs = chosen.pop("squashfs")
    try:
        mounted = NodeMounts(Config(store="/nonexistent", **chosen)).mount(stored(squashfs))
    except UdiError as error:
        print(json.dumps({"brief": error.brief, "details": error.details, "hint": error.hint}))
        return error.exit_code
    names = sorted(os.listdir(mounted.view))
    print(json.dumps({"backend": mounted.backend, "root": mounted.root, "names": names, "pid": os.getpid()}))
    sys.stdout.flush()
    if command:
        os.execvp(command[0], command)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
