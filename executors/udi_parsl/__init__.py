"""An image for each Parsl app: ``@image("docker:…")`` above ``@python_app`` or ``@bash_app``.

::

    @image("docker:ghcr.io/lab/reco:2.1")
    @python_app
    def fit(run: int) -> float: ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udi_parsl.decorator import image as image
    from udi_parsl.executors import UdiExecutorMixin as UdiExecutorMixin
    from udi_parsl.executors import UDIHighThroughputExecutor as UDIHighThroughputExecutor
    from udi_parsl.images import TaskImage as TaskImage
    from udi_parsl.nodes import WarmLauncher as WarmLauncher
    from udi_parsl.nodes import prefetch as prefetch
    from udi_parsl.nodes import worker_init as worker_init
    from udi_parsl.results import ImageTaskError as ImageTaskError
    from udi_parsl.retries import retry_handler as retry_handler

# Imported when first used: a worker needs none of these, and Parsl's executors cost it 50 ms.
_HOME = {
    "ImageTaskError": "results",
    "TaskImage": "images",
    "UDIHighThroughputExecutor": "executors",
    "UdiExecutorMixin": "executors",
    "WarmLauncher": "nodes",
    "image": "decorator",
    "prefetch": "nodes",
    "retry_handler": "retries",
    "worker_init": "nodes",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept: the next look-up costs nothing.
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
