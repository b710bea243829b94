"""Parsl on a Slurm cluster: one executor, blocks of nodes, images warm on each node before its workers start.

Copy it, or put this directory on PYTHONPATH::

    import parsl, slurm

    with parsl.load(slurm.config(account="m1234", images=["docker:ghcr.io/lab/reco:2.1"])):
        ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider
from udi_parsl import WarmLauncher, retry_handler


def executor(
    label: str,
    *,
    images: Sequence[str] = (),
    workers: int = 1,
    gpus: int = 0,
    patience: int = 60,
    **provider: Any,
) -> HighThroughputExecutor:
    """An executor whose workers run on blocks of nodes.

    Args:
        images: mounted on every node of a block before its workers start; they must have been pulled (``udi pull``, or
            ``udi_parsl.prefetch``).  What is not named here is mounted by the first task that needs it.
        workers: on each node, each with an equal part of its cores.
        gpus: on each node; each worker gets one of them, and there are no more workers than GPUs.
        patience: seconds after which a node that is not heard of counts as dead, and its tasks are run elsewhere.
        provider: further arguments of SlurmProvider (``account``, ``constraint``, ``walltime``, ``nodes_per_block``).
    """
    return HighThroughputExecutor(
        label=label,
        max_workers_per_node=workers,
        cpu_affinity="block",
        available_accelerators=gpus,
        heartbeat_period=max(1, patience // 4),
        heartbeat_threshold=patience,
        provider=SlurmProvider(
            launcher=WarmLauncher(SrunLauncher(), *images), cmd_timeout=60, gpus_per_node=gpus or None, **provider
        ),
    )


def config(
    *,
    account: str | None = None,
    images: Sequence[str] = (),
    workers: int = 1,
    nodes_per_block: int = 1,
    max_blocks: int = 4,
    walltime: str = "01:00:00",
    **provider: Any,
) -> Config:
    """A configuration for any cluster; ``provider`` takes what the site wants besides (``partition``, ``qos``)."""
    return Config(
        executors=[
            executor(
                "slurm",
                images=images,
                workers=workers,
                account=account,
                nodes_per_block=nodes_per_block,
                max_blocks=max_blocks,
                walltime=walltime,
                **provider,
            )
        ],
        retries=3,
        retry_handler=retry_handler,
    )
