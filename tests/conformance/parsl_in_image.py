"""A configuration for Parsl's own test-suite: HTEX, with every task in the image that $UDI_CONFORMANCE names."""

import os

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider
from udi_parsl import UDIHighThroughputExecutor

_COMMON = {"loopback_address": "::1", "worker_debug": True, "cores_per_worker": 1, "encrypted": True}


def fresh_config() -> Config:
    """Called by Parsl's conftest for every session."""
    provider = LocalProvider(init_blocks=1, max_blocks=1, launcher=SimpleLauncher())
    image = os.environ.get("UDI_CONFORMANCE")
    if image:
        executor = UDIHighThroughputExecutor(label="htex_in_image", image=image, provider=provider, **_COMMON)
    else:
        executor = HighThroughputExecutor(label="htex_bare", provider=provider, **_COMMON)
    return Config(executors=[executor], strategy="none")
