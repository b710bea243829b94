"""What a failure costs of a task's retries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parsl.serialize.errors import SerializationError

from udi_core import AgentLost, MountError, UdiError

if TYPE_CHECKING:
    from parsl.dataflow.taskrecord import TaskRecord

#: A cost that no number of retries covers.
_FATAL = 1e9


def retry_handler(error: Exception, task: TaskRecord) -> float:
    """For ``Config(retries=…, retry_handler=retry_handler)``: the cost of a failure, in retries.

    A lost agent costs a tenth (the task was killed with it, and is innocent more often than not), a node on which
    the image cannot be mounted costs one (another node may do), any other error of UDI's is final: a missing image,
    or a function or an argument that cannot be sent, fails again however often it is tried.
    """
    if isinstance(error, AgentLost):
        return 0.1
    if isinstance(error, MountError):
        return 1.0
    if isinstance(error, (UdiError, SerializationError)):
        return _FATAL
    return 1.0
