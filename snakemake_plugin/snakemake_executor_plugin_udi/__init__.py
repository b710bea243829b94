"""A hook, not an executor: the way into every Snakemake process, on this machine and on the nodes.

Snakemake imports each installed ``snakemake_executor_plugin_*`` package at its start, whichever executor was chosen,
and so do the processes that it starts for jobs.  With ``UDI_SNAKEMAKE=1`` this one puts UDI's front on PATH; without,
it does nothing.  It must stay light, and an error here must never keep Snakemake from starting.
"""

from __future__ import annotations

import sys
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import AbstractExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(non_local_exec=False, implies_no_shared_fs=False, job_deploy_sources=False)


class Executor(AbstractExecutor):  # type: ignore[misc]
    """Stands where Snakemake wants a class; choosing it is an error that says what to choose."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Executor:
        raise WorkflowError(
            "'udi' is no executor: it puts images behind 'container:' for all of them. "
            "Choose --executor local, slurm or another, with --sdm apptainer and UDI_SNAKEMAKE=1."
        )


try:
    from udi_snakemake.activation import activate

    if activate():
        from udi_snakemake.in_process import install

        install()
except Exception as error:
    print(f"udi: UDI_SNAKEMAKE=1 could not be honoured: {error}", file=sys.stderr)
