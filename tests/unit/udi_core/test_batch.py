"""Batch scripts as text."""

from __future__ import annotations

import pytest

from udi_core.batch import Job, directives, interpreter, prepared, recorded
from udi_core.errors import UsageError

SCRIPT = """#!/bin/bash -e
#SBATCH --nodes=2
#UDI --image=docker:lab/reco:1   # what was released

#UDI --volume="/data set:/data" --env NAME=$WHO
##UDI --image=docker:lab/old:1
#UDIX
echo $LINENO
#UDI --image=too-late
"""
JOB = Job(
    images={"default": "sha256:" + "a" * 64},
    references={"default": "docker:lab/reco:1"},
    store="/scratch/udi",
    interpreter=("/bin/bash", "-e"),
    options=("--volume=/data:/data",),
)
PROGRAM = ("/opt/udi/bin/python", "-P", "-m", "udi_core")


def test_directives_end_with_the_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHO", "me")
    expected = ["--image=docker:lab/reco:1", "--volume=/data set:/data", "--env", "NAME=me"]
    assert directives(SCRIPT) == expected
    with pytest.raises(UsageError) as caught:
        directives('#!/bin/sh\n#UDI --env="A\n')
    assert "line 2" in caught.value.details


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("#!/bin/bash", ("/bin/bash",)),
        ("#! /usr/bin/env -S python3 -u ", ("/usr/bin/env", "-S python3 -u")),
        ("#!/usr/bin/env -S udi batch", ()),
        ("#!/opt/udi/bin/udi batch", ()),
        ("#!/usr/bin/env -S /opt/udi/bin/python -P -m udi_core batch", ()),
        ("#!/opt/other/bin/udi-tool batch", ("/opt/other/bin/udi-tool", "batch")),
    ],
)
def test_the_interpreter(first: str, expected: tuple[str, ...]) -> None:
    assert interpreter(f"{first}\necho\n") == expected


def test_what_is_no_script_is_refused() -> None:
    with pytest.raises(UsageError, match="no script"):
        interpreter("echo hello\n")


@pytest.mark.parametrize("script", [SCRIPT, SCRIPT.rstrip("\n"), "#!/bin/sh", "#!/usr/bin/env -S udi batch\necho\n"])
def test_preparing_changes_the_first_line_and_adds_one(script: str) -> None:
    text = prepared(script, JOB, PROGRAM)
    assert recorded(text) == JOB
    assert recorded(script) is None
    lines = text.splitlines()
    assert lines[1:-1] == script.splitlines()[1:]
    assert interpreter(text) == ()
    assert directives(text) == directives(script)


def test_odd_paths_in_the_first_line() -> None:
    text = prepared("#!/bin/sh\n", JOB, ('/opt/a "b" $c/python', "-m", "udi_core"))
    assert text.splitlines()[0] == r'#!/usr/bin/env -S "/opt/a \"b\" \$c/python" -m udi_core batch'
    with pytest.raises(UsageError, match="too long a path"):
        prepared("#!/bin/sh\n", JOB, ("/" + "x" * 250, "-m", "udi_core"))


def test_a_damaged_record_is_refused() -> None:
    with pytest.raises(UsageError, match="damaged"):
        recorded("#!/bin/sh\n#UDI-JOB {}\n")
