"""``udi node``: mounts on this node."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from udi_core.cli.show import json_document, lazy_progress, table
from udi_core.config import load_config
from udi_core.launch import find
from udi_core.mount import NodeMounts
from udi_core.store import ImageStore


def node(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    config = load_config()
    mounts = NodeMounts(config, ImageStore(config.store))
    if arguments.verb == "status":
        states = mounts.status()
        if arguments.json:
            json_document([asdict(state) for state in states])
        else:
            rows = [
                [state.digest[7:19], state.backend, f"{time.time() - state.mounted:.0f} s", state.reference]
                for state in states
            ]
            table(["IMAGE ID", "BACKEND", "SINCE", "REFERENCE"], rows)
    elif arguments.verb == "warm":
        with lazy_progress() as progress:
            for reference in arguments.references:
                image = find(reference, config, pull_missing=not arguments.no_pull, progress=progress)
                with mounts.mount(image, progress) as mounted:
                    print(f"{image.digest[7:19]}  {mounted.backend}  {reference}")
    else:
        for digest in mounts.clean():
            print(f"unmounted {digest}")
    return 0
