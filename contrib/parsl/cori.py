"""Parsl on a cluster like NERSC's Cori: Haswell and Knights Landing nodes, chosen by constraint.

Apps go to both kinds of nodes, or to one by ``executors=["knl"]``; a mapping of images picks the right one on each::

    @image({"mic_knl": "docker:lab/reco:knl", "default": "docker:lab/reco:hsw"})
    @python_app
    def fit(run): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parsl.config import Config
from slurm import executor
from udi_parsl import retry_handler

#: Workers for each kind of node: one for each core of a Haswell; memory sets the limit on Knights Landing.
WORKERS = {"haswell": 32, "knl": 64}


def config(
    *,
    account: str | None = None,
    images: Sequence[str] = (),
    workers: dict[str, int] = WORKERS,
    qos: str | None = "regular",
    nodes_per_block: int = 1,
    max_blocks: int = 2,
    walltime: str = "01:00:00",
    **provider: Any,
) -> Config:
    """Two executors, ``haswell`` and ``knl``."""
    return Config(
        executors=[
            executor(
                kind,
                images=images,
                workers=workers[kind],
                constraint=kind,
                account=account,
                qos=qos,
                nodes_per_block=nodes_per_block,
                max_blocks=max_blocks,
                walltime=walltime,
                **provider,
            )
            for kind in ("haswell", "knl")
        ],
        retries=3,
        retry_handler=retry_handler,
    )
