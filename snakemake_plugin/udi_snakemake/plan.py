"""Run as a program: let Snakemake plan a dry run, and print the images that it would pull.

A process of its own, because Snakemake keeps state in module globals and executes the Snakefile.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from udi_snakemake.discovery import PLAN_MARK


def main(argv: list[str]) -> int:
    from snakemake import cli
    from snakemake.deployment import singularity

    images: dict[str, None] = {}

    def record(self: Any, dryrun: bool = False) -> None:
        images[self.url] = None

    # Snakemake asks each image of the plan to be pulled, dry run or not; 8 and 9 share this class.
    singularity.Image.pull = record
    status = 0
    try:
        cli.main(
            [
                *argv,
                "--dry-run",
                "--forceall",
                "--quiet",
                "all",
                "--cores",
                "1",
                "--software-deployment-method",
                "apptainer",
            ]
        )
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    print(PLAN_MARK + json.dumps(list(images)))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
