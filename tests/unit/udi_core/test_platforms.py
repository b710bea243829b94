"""Which platform a node is, and what runs on it; levels are compared with archspec's."""

from __future__ import annotations

import archspec.cpu
import pytest

from udi_core import UsageError, host_platform
from udi_core.platforms import can_run, parse_platform, x86_level


@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_levels_are_those_of_archspec(level: str) -> None:
    features = archspec.cpu.TARGETS[f"x86_64_{level}"].features
    assert x86_level(frozenset(features)) == level
    below = f"v{int(level[1:]) - 1}" if level != "v2" else ""
    mine = features - (archspec.cpu.TARGETS[f"x86_64_{below}"].features if below else set())
    for missing in mine - {"mmx", "sse", "sse2", "sse3"}:
        assert x86_level(frozenset(features - {missing})) == below, missing


def test_this_machine_is_what_archspec_says() -> None:
    host = archspec.cpu.host()
    found = host_platform()
    if found.architecture == "amd64":
        levels = [f"x86_64_{each}" for each in ("v2", "v3", "v4")]
        known = [each[-2:] for each in levels if archspec.cpu.TARGETS[each] in (host, *host.ancestors)]
        assert found.variant == (known[-1] if known else "")


@pytest.mark.parametrize(
    ("image", "node", "runs"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/amd64/v3", "linux/amd64/v4", True),
        ("linux/amd64/v3", "linux/amd64/v2", False),
        ("linux/amd64/v1", "linux/amd64", True),
        ("linux/arm64", "linux/amd64/v4", False),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm/v7", "linux/arm/v6", False),
        ("linux/arm", "linux/arm/v7", True),
        ("windows/amd64", "linux/amd64", False),
        (f"linux/amd64/v{'9' * 5000}", "linux/amd64", True),
    ],
)
def test_what_runs_where(image: str, node: str, runs: bool) -> None:
    assert can_run(parse_platform(image), parse_platform(node)) is runs


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/amd64/", "a/b/c/d"])
def test_a_malformed_platform_shows_a_right_one(text: str) -> None:
    with pytest.raises(UsageError, match="linux/amd64/v3"):
        parse_platform(text)
