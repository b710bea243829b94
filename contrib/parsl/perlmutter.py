"""Parsl on a cluster like NERSC's Perlmutter: CPU nodes and GPU nodes, chosen by constraint.

Send an app to one kind by ``executors=["gpu"]``.  Four workers share a GPU node, and each sees one GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parsl.config import Config
from slurm import executor
from udi_parsl import retry_handler


def config(
    *,
    account: str | None = None,
    images: Sequence[str] = (),
    workers: int = 128,
    gpus: int = 4,
    qos: str | None = "regular",
    nodes_per_block: int = 1,
    max_blocks: int = 2,
    walltime: str = "01:00:00",
    **provider: Any,
) -> Config:
    """Two executors, ``cpu`` and ``gpu``.  GPU work is charged to an account whose name ends in ``_g``."""
    common = {
        "images": images,
        "qos": qos,
        "nodes_per_block": nodes_per_block,
        "max_blocks": max_blocks,
        "walltime": walltime,
        **provider,
    }
    cpu = executor("cpu", workers=workers, constraint="cpu", account=account, **common)
    gpu = executor(
        "gpu",
        workers=max(gpus, 1),
        gpus=gpus,
        constraint="gpu",
        account=account and account.removesuffix("_g") + "_g",
        **common,
    )
    return Config(executors=[cpu, gpu], retries=3, retry_handler=retry_handler)
