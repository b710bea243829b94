"""Which images a task may run in, what it carries of them, and what they do to its memo key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dill
import pytest
from parsl.dataflow.memoization import id_for_memo
from udi_parsl.images import Choice, TaskImage, Wish, choose, frozen, same_python, thawed

from udi_core import MAGIC, UsageError


def choice(kind: str, letter: str, magic: bytes = MAGIC) -> Choice:
    digest = "sha256:" + letter * 64
    return Choice(kind=kind, digest=digest, python="/usr/bin/python3", version="3.11", magic=magic.hex(), shell="sh")


IMAGE = TaskImage(
    reference="docker:lab/reco:1",
    store="/store",
    choices=(choice("haswell", "a"), choice("default", "b")),
    volumes=("/data:/data:ro",),
    env=(("KEY", "value"),),
)


@pytest.mark.parametrize("copy", [lambda image: thawed(frozen(image)), lambda image: dill.loads(dill.dumps(image))])
def test_a_task_carries_all_of_it(copy: Any) -> None:
    assert copy(IMAGE) == IMAGE


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"reference": "docker:lab/reco:latest"}, True),
        ({"store": "/other/store"}, True),
        ({"choices": (choice("haswell", "c"), choice("default", "b"))}, False),
        ({"choices": (choice("haswell", "a"), choice("default", "c"))}, False),
        ({"env": (("KEY", "other"),)}, False),
        ({"setup": "module load reco"}, False),
    ],
)
def test_the_memo_key_is_of_what_runs_and_not_of_names(change: dict[str, Any], same: bool) -> None:
    assert (id_for_memo(IMAGE) == id_for_memo(replace(IMAGE, **change))) is same


def test_the_choice_is_made_on_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDI_NODE_KIND", "haswell")
    assert choose(IMAGE).kind == "haswell"
    monkeypatch.setenv("UDI_NODE_KIND", "x86_64")
    assert choose(IMAGE).kind == "default"
    with pytest.raises(UsageError, match="No image of docker:lab/reco:1 fits"):
        choose(replace(IMAGE, choices=IMAGE.choices[:1]))


def test_one_strange_python_among_the_choices_is_enough() -> None:
    assert same_python(IMAGE, MAGIC)
    assert not same_python(replace(IMAGE, python="/opt/python3"), MAGIC)
    assert not same_python(replace(IMAGE, choices=(*IMAGE.choices, choice("v4", "d", b"other"))), MAGIC)


@pytest.mark.parametrize("reference", [{}, {"no-such-kind": "docker:lab/reco:1"}, {"default": "docker:UPPER case"}])
def test_what_a_user_may_get_wrong(reference: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Wish.parse(reference)
