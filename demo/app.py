"""A Parsl script as a scientist would write it: two apps, one line each to say where they run."""

from __future__ import annotations

import parsl
from parsl import bash_app, python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from udi_parsl import image


def describe_by_parsl(reference: str, directory: str, *, python: bool) -> str:
    """What an app in the image says of its system; a bash app where the image has no Python."""

    @image(reference)
    @python_app
    def describe() -> str:
        import platform

        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Python {platform.python_version()}"

    @image(reference)
    @bash_app
    def describe_in_shell(stdout: str) -> str:
        return '. /etc/os-release; echo "$PRETTY_NAME"'

    provider = LocalProvider(init_blocks=1, max_blocks=1)
    executor = HighThroughputExecutor(max_workers_per_node=1, address="127.0.0.1", provider=provider)
    with parsl.load(Config(executors=[executor], run_dir=directory)):
        if python:
            said: str = describe().result(timeout=120)
            return said
        describe_in_shell(stdout=f"{directory}/stdout").result(timeout=120)
        with open(f"{directory}/stdout") as file:
            return file.read().strip()
