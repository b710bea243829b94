"""What runs on the worker: enter the image, hand the task to an agent, bring the answer back.

A worker is a process that Parsl started on a node; everything here is imported there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from udi_core import (
    Agent,
    AgentPool,
    Host,
    HostCalls,
    ImageStore,
    Job,
    Launch,
    LaunchError,
    LaunchSpec,
    NodeMounts,
    PolicyError,
    ToolMissing,
    Volume,
    agent_command,
    agent_support,
    build,
    calls_for_ranks,
    kill_tree,
    load_config,
    pack_arguments,
    spawn,
    unpack,
    write_record,
)
from udi_parsl.images import Choice, TaskImage, choose, same_python
from udi_parsl.results import Sealed, open_error, open_result

#: Idle agents that a worker keeps for its next tasks.
AGENTS = int(os.environ.get("UDI_PARSL_AGENTS", "4"))

_pool = AgentPool(AGENTS)


def run_function(image: TaskImage, specification: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a python app in its image; its result if that is a small plain value, else it or its exception sealed."""

    def packed(found: Agent) -> list[Any]:
        same = found.magic == specification["magic"] and same_python(image, found.magic)
        return pack_arguments((args, kwargs), specification, same=same, protocol=found.protocol)

    return _run(image, specification, packed)


def run_packed(image: TaskImage, specification: dict[str, Any], parts: list[bytes]) -> Any:
    """As :func:`run_function`, with arguments that the submit side has packed."""
    return _run(image, specification, lambda found: parts)


def _run(image: TaskImage, specification: dict[str, Any], packed: Callable[[Agent], list[Any]]) -> Any:
    began = time.time()
    choice = choose(image)
    if not (image.python or choice.python):
        raise LaunchError(
            f"{image.reference} has no Python 3",
            f"The python app {specification['name']!r} needs one.",
            "Use a bash app, name the interpreter by python=, or choose another image.",
        )
    if specification["source"] is not None and not same_python(image, specification["magic"]):
        specification = _source_only(specification)
    with agent(image, choice) as found:
        parts = packed(found)
        with found.recorded(specification["name"], began) as end:
            answer = found.call(specification, parts, image.workdir or os.getcwd())
            end(0 if len(answer) > 1 else 1)  # a failure has one part
    if answer[0] == b"plain":
        return unpack(answer[1:])
    if answer[0] == b"ok":
        return Sealed(open_result, answer[1:])
    return Sealed(open_error, answer)


def _source_only(specification: dict[str, Any]) -> dict[str, Any]:
    """One for a task whose arguments go as source: were its function bytecode, it would have other classes."""
    return {**specification, "id": specification["id"] + "-source", "magic": b"", "bytecode": None}


def run_command(image: TaskImage, command: str, output: int, errors: int, timeout: float | None) -> int | None:
    """Run a shell command in its image; its exit status, or None if it exceeded ``timeout`` seconds."""
    began = time.time()
    choice = choose(image)
    if not choice.shell:
        raise LaunchError(f"{image.reference} has no shell", "A bash app needs bash or sh in the image.")
    text = f"{image.setup}\n{command}" if image.setup else command
    argv = (choice.shell, "-c", text)
    directory = image.workdir or os.getcwd()
    if choice.python or image.python:
        # The agent is inside already: it starts the shell in a millisecond, a new sandbox takes four.
        with agent(image, choice) as found, found.recorded(os.path.basename(choice.shell), began) as end:
            status = found.spawn(argv, directory, output, errors, timeout)
            end(-1 if status is None else status)
            return status
    with sandbox(image, choice, argv) as launch:
        start = time.time()
        status = _run_alone(launch, output, errors, timeout)
        code = -1 if status is None else status
        write_record(*launch.record, start=began, setup=start - began, seconds=time.time() - start, exit=code)
        return status


def _run_alone(launch: Launch, output: int, errors: int, timeout: float | None) -> int | None:
    from udi_core import DEVNULL, TimeoutExpired

    process = spawn(launch.argv, env=launch.env, pass_fds=launch.pass_fds, stdin=DEVNULL, stdout=output, stderr=errors)
    try:
        return int(process.wait(timeout))
    except TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait()


@contextlib.contextmanager
def agent(image: TaskImage, choice: Choice) -> Iterator[Agent]:
    """An agent in the image, for one task."""
    if "PARSL_MPI_PREFIX" in os.environ:
        with _agent_for_ranks(image, choice) as found:
            yield found
        return
    key = (choice.digest, image.volumes, image.env, image.setup, image.python)

    def start() -> Agent:
        return _start_agent(image, choice)

    with _pool.agent(key, start) as found:
        yield found


@contextlib.contextmanager
def _agent_for_ranks(image: TaskImage, choice: Choice) -> Iterator[Agent]:
    """An agent for one task of MPIExecutor, from which the node's launcher can be called.

    It is not kept: its environment has the task's nodes and launcher, and the calls end with the task.
    """
    options = [f"--volume={each}" for each in image.volumes] + [f"--env={name}={value}" for name, value in image.env]
    job = Job(
        images={each.kind: each.digest for each in image.choices},
        references={"default": image.reference},
        store=image.store,
        options=(*options, *((f"--workdir={image.workdir}",) if image.workdir else ())),
        setup=image.setup,
        by="parsl",
    )
    with contextlib.ExitStack() as stack:
        try:
            calls = stack.enter_context(calls_for_ranks(load_config(), job))
        except (PolicyError, ToolMissing):
            calls = None  # the image may have a launcher of its own
        found = _start_agent(image, choice, calls)
        stack.callback(found.close)
        yield found


def _start_agent(image: TaskImage, choice: Choice, calls: HostCalls | None = None) -> Agent:
    volumes, env = agent_support()
    command = agent_command(image.python or choice.python, image.setup, choice.shell)
    with sandbox(image, choice, command, support=volumes, env=env, calls=calls) as launch:
        return Agent(launch)


@contextlib.contextmanager
def sandbox(
    image: TaskImage,
    choice: Choice,
    command: tuple[str, ...],
    *,
    support: tuple[Volume, ...] = (),
    env: dict[str, str] | None = None,
    calls: HostCalls | None = None,
) -> Iterator[Launch]:
    """The command line that runs ``command`` in the image; a process that it becomes keeps the mount."""
    config = replace(load_config(), store=image.store)
    spec = LaunchSpec(
        command=command,
        volumes=tuple(map(Volume.parse, image.volumes)),
        env={**dict(image.env), **(env or {})},
        support=support,
        by="parsl",
        die_with_parent=True,
    )
    # The grace time of an unused mount covers the gap between two tasks; an agent holds it while it lives.
    images = ImageStore(image.store, config.node_dir)
    with NodeMounts(config, images).mount(images.image(choice.digest), ranks=calls is not None) as mounted:
        yield (calls.build if calls else build)(spec, mounted, config, Host.observe(mounted))
