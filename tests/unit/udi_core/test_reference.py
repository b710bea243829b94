"""References as people type them.  The grammar is that of distribution/reference, written there as expressions."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from udi_core import reference as module
from udi_core.errors import InvalidReference
from udi_core.reference import ImageReference

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ubuntu", "docker://docker.io/library/ubuntu:latest"),
        ("docker:ubuntu:24.04", "docker://docker.io/library/ubuntu:24.04"),
        ("docker://docker:27-cli", "docker://docker.io/library/docker:27-cli"),
        ("index.docker.io/a/b", "docker://docker.io/a/b:latest"),
        ("localhost/x", "docker://localhost/x:latest"),
        ("[::1]:5000/x/y:1", "docker://[::1]:5000/x/y:1"),
        (f"ghcr.io/o/i:t@sha256:{HEX}", f"docker://ghcr.io/o/i:t@sha256:{HEX}"),
        (f"a__b/c---d.e@sha256:{HEX}", f"docker://docker.io/a__b/c---d.e@sha256:{HEX}"),
        ("id:0123456789ab", "id:0123456789ab"),
        (f"id:sha256:{HEX}", f"id:{HEX}"),
        ("oci:rel/dir:tag", "oci:/cwd/rel/dir:tag"),
        ("docker-archive:/a.tar:name:tag", "docker-archive:/a.tar:name:tag"),
        ("dir:../x", "dir:/x"),
        ("./a.sqsh", "file:/cwd/a.sqsh"),
        ("/A B/x.SIF", "file:/A B/x.SIF"),
    ],
)
def test_canonical_forms(text: str, canonical: str) -> None:
    reference = ImageReference.parse(text, cwd="/cwd")
    assert str(reference) == canonical
    assert ImageReference.parse(canonical) == reference


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (" ubuntu", "blanks"),
        ("Ubuntu", "upper-case"),
        ("a/UPPER:x", "upper-case"),
        ("host_x.org/a", "host_x.org"),
        ("host:123456/a", "host:123456"),
        ("[::1/a", "[::1"),
        ("x:-tag", "-tag"),
        ("x:" + "t" * 129, "ttt"),
        (f"x@sha256:{HEX[:-1]}", "digest"),
        (f"x@sha512:{HEX}", "digest"),
        (f"x@sha256:{HEX.upper()}", "digest"),
        ("a..b", "a..b"),
        ("a/b_", "b_"),
        ("id:12345", "12345"),
        (f"id:{HEX}0", "0"),
        ("ftp://x/y", "ftp"),
        ("oci:", "oci"),
        ("./x", "path"),
        ("ghcr.io/", "missing"),
    ],
)
def test_the_part_that_is_wrong_is_named(text: str, part: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        ImageReference.parse(text)
    assert part in caught.value.details or part in caught.value.brief
    assert caught.value.hint


@pytest.mark.parametrize(
    ("expression", "function", "characters"),
    [
        (
            r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
            r"|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?",
            module._is_registry,
            "aB1-.:[]8f_",
        ),
        (r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", module._is_tag, "aB1-._ :"),
        (r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", module._is_component, "a1-._B"),
    ],
)
def test_the_grammar(expression: str, function: Callable[[str], bool], characters: str) -> None:
    source = random.Random(0)
    for _ in range(5000):
        text = "".join(source.choices(characters, k=source.randint(0, 8)))
        assert function(text) == bool(re.fullmatch(expression, text)), text
