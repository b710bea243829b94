"""What ranks of MPI get."""

from __future__ import annotations

import pytest

from udi_core.mpi import ordered

DEFAULT = "kernel fuse namespace extract"


@pytest.mark.parametrize(
    ("backends", "environ", "expected"),
    [
        (DEFAULT, {}, DEFAULT),
        (DEFAULT, {"PMI_RANK": "0"}, "kernel namespace fuse extract"),
        (DEFAULT, {"PMIX_RANK": "3"}, "kernel namespace fuse extract"),
        ("fuse", {"PMI_RANK": "0"}, "fuse"),
        ("namespace kernel fuse", {"PMI_RANK": "0"}, "namespace kernel fuse"),
        ("extract", {"PMI_RANK": "0"}, "extract"),
    ],
)
def test_ranks_share_a_namespace_where_it_can_be(backends: str, environ: dict[str, str], expected: str) -> None:
    assert ordered(backends.split(), environ) == expected.split()
