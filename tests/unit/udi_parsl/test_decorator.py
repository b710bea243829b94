"""The future by which a task waits for its image."""

from __future__ import annotations

from udi_parsl.decorator import ImageFuture
from udi_parsl.images import Wish

from udi_core import UsageError


def test_it_names_the_image_and_why_that_cannot_be_had() -> None:
    future = ImageFuture(Wish.parse({"haswell": "docker:lab/reco:hsw", "default": "docker:lab/reco:1"}))
    assert repr(future) == "the image docker:lab/reco:hsw, docker:lab/reco:1"
    future.set_exception(UsageError("It has gone", "", "Push it."))
    assert repr(future) == "the image docker:lab/reco:hsw, docker:lab/reco:1: It has gone\nPush it."


def test_no_task_can_cancel_it_for_the_others() -> None:
    future = ImageFuture(Wish.parse("docker:lab/reco:1"))
    assert not future.cancel() and not future.done()
