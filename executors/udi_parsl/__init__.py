"""An image for each Parsl app: ``@image("docker:…")`` above ``@python_app`` or ``@bash_app``.

::

    @image("docker:ghcr.io/lab/reco:2.1")
    @python_app
    def fit(run: int) -> float: ...
"""

from udi_parsl.executors import UdiExecutorMixin, UDIHighThroughputExecutor
from udi_parsl.image import image
from udi_parsl.images import TaskImage
from udi_parsl.nodes import prefetch, worker_init
from udi_parsl.results import ImageTaskError
from udi_parsl.retries import retry_handler

__all__ = [
    "ImageTaskError",
    "TaskImage",
    "UDIHighThroughputExecutor",
    "UdiExecutorMixin",
    "image",
    "prefetch",
    "retry_handler",
    "worker_init",
]
