"""Whether tasks may share a sandbox."""

from __future__ import annotations

import pytest

from udi_core.errors import LaunchError
from udi_core.layout import Step
from udi_core.sandbox import Launch
from udi_core.standing import own_directories, stand


def test_an_empty_directory_that_can_be_written_to_is_a_task_s_own() -> None:
    shared = [Step("tmpfs", "", "/opt"), Step("bind", "/tmp", "/tmp"), Step("remount-ro", "", "/opt")]
    assert own_directories(shared) == set()
    assert own_directories([*shared, Step("tmpfs", "", "/home/ada")]) == {"/home/ada"}


def test_what_only_bubblewrap_can_start_does_not_stand() -> None:
    with pytest.raises(LaunchError, match="cannot share a sandbox"):
        stand(Launch(("/usr/bin/bwrap",), {}, ()), root="/", inputs=())
