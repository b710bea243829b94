"""What ranks of MPI get."""

from __future__ import annotations

import pytest

from udi_core.mpi import for_ranks


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ("kernel fuse namespace extract", "kernel namespace fuse extract"),
        ("fuse", "fuse"),
        ("namespace kernel fuse", "namespace kernel fuse"),
        ("extract", "extract"),
    ],
)
def test_ranks_share_a_namespace_where_it_can_be(backends: str, expected: str) -> None:
    assert for_ranks(backends.split()) == expected.split()
