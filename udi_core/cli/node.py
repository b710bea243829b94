"""``udi node``: mounts on this node."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict

from udi_core.cli.show import json_document, lazy_progress, table
from udi_core.config import Config, load_config
from udi_core.copies import adopt
from udi_core.hold import Holds, check_job
from udi_core.launch import find
from udi_core.mount import NodeMounts
from udi_core.node_files import check_directory
from udi_core.node_kind import parse_kinds, split_kind
from udi_core.reference import ImageReference
from udi_core.store import ImageStore


def node(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    config = load_config()
    mounts = NodeMounts(config, ImageStore(config.store))
    holds = Holds(config)
    if arguments.verb == "status":
        states = mounts.status()
        held = holds.jobs()
        jobs = {state.root: [job for job, roots in held.items() if state.root in roots] for state in states}
        if arguments.json:
            json_document([{**asdict(state), "held_by": jobs[state.root]} for state in states])
        else:
            rows = [
                [
                    state.digest[7:19],
                    state.backend,
                    f"{time.time() - state.mounted:.0f} s",
                    _jobs(jobs[state.root]),
                    ImageReference.parse(state.reference).short,
                ]
                for state in states
            ]
            table(["IMAGE ID", "BACKEND", "SINCE", "HELD BY", "REFERENCE"], rows)
    elif arguments.verb == "warm":
        job = arguments.job or os.environ.get("SLURM_JOB_ID", "")
        hold = arguments.hold or arguments.job is not None
        if hold:
            check_job(job)
        if arguments.broadcast:
            _broadcast(arguments, config)
        with lazy_progress() as progress:
            for reference in _for_this_node(arguments.references):
                image = find(reference, config, pull_missing=not arguments.no_pull, progress=progress)
                with mounts.mount(image, progress) as mounted:
                    if hold:
                        holds.hold(mounted, job, os.environ)
                    print(f"{image.digest[7:19]}  {mounted.backend}  {reference}")
    elif arguments.verb == "adopt":
        image = ImageStore(config.store).image(arguments.digest)
        check_directory(config.node_dir)
        print(adopt(config.node_dir, image, arguments.part))
    else:
        # Without a job only what is dead goes: the holds of a job that runs are that job's.
        if arguments.job is not None:
            check_job(arguments.job)
        holds.release(None if arguments.all else arguments.job or os.environ.get("SLURM_JOB_ID", ""))
        for digest in mounts.clean():
            print(f"unmounted {digest}")
    return 0


def _broadcast(arguments: argparse.Namespace, config: Config) -> None:
    """Send all images, those for other kinds of nodes too: which nodes the job has, only they know."""
    from udi_core.broadcast import broadcast
    from udi_core.programs import PROGRAM

    for text in arguments.references:
        with lazy_progress() as progress:
            image = find(split_kind(text)[1], config, pull_missing=not arguments.no_pull, progress=progress)
        nodes = broadcast(image, config, os.environ, PROGRAM)
        print(f"{image.digest[7:19]}  on {nodes} nodes  {text}")


def _for_this_node(texts: list[str]) -> list[str]:
    """The references without a kind, and the one of those with a kind that fits this node."""
    plain = [text for text in texts if not split_kind(text)[0]]
    kinds = parse_kinds(text for text in texts if split_kind(text)[0])
    if not kinds:
        return plain
    from udi_core.mixed import for_this_node

    return [*plain, for_this_node(kinds, ", ".join(kinds.values()))]


def _jobs(jobs: list[str]) -> str:
    return ", ".join(f"job {job}" for job in jobs) or "-"
