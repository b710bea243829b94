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
        ("Ubuntu", "at 'Ubuntu': upper-case"),
        ("a/UPPER:x", "at 'UPPER': upper-case"),
        ("host_x.org/a", "The registry 'host_x.org'"),
        ("host:123456/a", "The registry 'host:123456'"),
        ("[::1/a", "The registry '[::1'"),
        ("x:-tag", "The tag '-tag'"),
        ("x:" + "t" * 129, "The tag 'ttt"),
        (f"x@sha256:{HEX[:-1]}", "The digest 'sha256:"),
        (f"x@sha512:{HEX}", "The digest 'sha512:"),
        (f"x@sha256:{HEX.upper()}", "The digest 'sha256:"),
        ("a..b", "at 'a..b': a character"),
        ("a/b_", "at 'b_': a character"),
        ("id:12345", "The image id '12345'"),
        (f"id:{HEX}0", "The image id"),
        ("ftp://x/y", "the scheme 'ftp'"),
        ("oci:", "Nothing follows 'oci'"),
        ("./x", "looks like a path"),
        ("ghcr.io/", "The repository is missing"),
    ],
)
def test_the_part_that_is_wrong_is_named(text: str, part: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        ImageReference.parse(text)
    assert part in caught.value.details
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
