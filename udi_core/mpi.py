"""What MPI's launchers and libraries say and understand by variables.

Ranks of a node copy from each other's memory (process_vm_readv(2)), and open each other's files by
``/proc/PID/fd``.  The kernel allows both within one user namespace only, and libraries that find out late fail or wait
for ever.  So ranks share a namespace where that is to be had (:func:`for_ranks`), and elsewhere are told not to try
(:data:`APART`).
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Names the directory of the PMIx server of this node, which ranks map into their memory.
SERVER_DIRECTORY = "PMIX_SERVER_TMPDIR"
#: Variables with which ranks in different user namespaces talk by shared memory, each with one copy more.
APART = {
    "MPIR_CVAR_CH4_CMA_ENABLE": "0",  # MPICH
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",  # Open MPI 4
    "OMPI_MCA_smsc": "^cma",  # Open MPI 5
    "UCX_POSIX_USE_PROC_LINK": "n",
    "UCX_TLS": "^cma",
}
_RANK = ("PMI_RANK", "PMIX_RANK")


def is_rank(environ: Mapping[str, str]) -> bool:
    """Whether a launcher of MPI has started this process: srun with ``--mpi``, or any mpirun."""
    return any(name in environ for name in _RANK)


def for_ranks(backends: Sequence[str]) -> list[str]:
    """Mount backends in the order to try for ranks: the one whose tasks share a namespace comes before ``fuse``."""
    found = list(backends)
    if "fuse" in found and "namespace" in found[found.index("fuse") :]:
        found.remove("namespace")
        found.insert(found.index("fuse"), "namespace")
    return found
