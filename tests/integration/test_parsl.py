"""Parsl apps in images of several Pythons, on real executors."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl import File, bash_app, join_app, python_app
from parsl.app.errors import AppTimeout, BashExitFailure, MissingOutputs
from parsl.config import Config
from parsl.dataflow.errors import DependencyError
from parsl.dataflow.memoization import BasicMemoizer
from parsl.executors import HighThroughputExecutor, MPIExecutor, ThreadPoolExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider
from parsl.serialize.errors import SerializationError
from udi_parsl import ImageTaskError, UdiExecutorMixin, UDIHighThroughputExecutor, image, prefetch, retry_handler
from udi_parsl.images import RESOLVER

from tests.support import images, oci
from udi_core import AgentLost, ImageReference, ImageStore, UsageError, load_config, pull, run

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry", "apt-get")

REPOSITORY = Path(__file__).parents[2]
OFFSET = 40


class Odd(Exception):
    """An exception that only the submit side has by this name."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests here: what they are about is not pulling."""
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def environment(udi_env: dict[str, str], store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key, value in {**udi_env, "UDI_STORE": store}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    RESOLVER.forget()


def htex(
    kind: type[HighThroughputExecutor] = HighThroughputExecutor, *, workers: int = 2, **options: Any
) -> HighThroughputExecutor:
    provider = LocalProvider(init_blocks=1, max_blocks=1, worker_init=f"export PYTHONPATH={REPOSITORY}:$PYTHONPATH")
    return kind(label="htex", max_workers_per_node=workers, provider=provider, encrypted=False, **options)


@contextlib.contextmanager
def workflow(*executors: Any, **options: Any) -> Iterator[None]:
    with parsl.load(Config(executors=list(executors), run_dir="runinfo", strategy="none", **options)):
        yield
    parsl.clear()


@pytest.fixture(params=["threads", "htex", "udi"])
def executor(request: pytest.FixtureRequest) -> Iterator[None]:
    made = {
        "threads": lambda: ThreadPoolExecutor(label="threads", max_threads=2),
        "htex": htex,
        "udi": lambda: htex(UDIHighThroughputExecutor),
    }[request.param]()
    with workflow(made):
        yield


def helper(value: int) -> int:
    return value + OFFSET


def describe(value: int) -> tuple[str, list[int], int]:
    import platform
    import sys

    return (
        platform.freedesktop_os_release()["VERSION_CODENAME"] if sys.version_info >= (3, 10) else "older",
        list(sys.version_info[:2]),
        helper(value),
    )


def test_each_app_runs_in_its_own_image(
    executor: None, base_image: str, trixie_image: str, bullseye_image: str
) -> None:
    apps = {name: image(name)(python_app(describe)) for name in (base_image, trixie_image, bullseye_image)}
    futures = [(name, app(2)) for name, app in apps.items()]
    found = {name: future.result() for name, future in futures}
    assert found[base_image] == ("bookworm", [3, 11], 42)
    assert found[trixie_image] == ("trixie", [3, 13], 42)
    assert found[bullseye_image] == ("older", [3, 9], 42)


def test_a_thousand_tasks_over_three_images(base_image: str, trixie_image: str, bullseye_image: str) -> None:
    def double(value: int) -> int:
        return 2 * value

    with workflow(htex(UDIHighThroughputExecutor)):
        apps = [image(name)(python_app(double)) for name in (base_image, trixie_image, bullseye_image)]
        futures = [apps[number % 3](number) for number in range(1000)]
        assert [future.result() for future in futures] == [2 * number for number in range(1000)]


def test_exceptions_keep_their_kind_and_carry_the_traceback_of_the_image(executor: None, trixie_image: str) -> None:
    def fail(kind: str) -> None:
        if kind == "key":
            raise KeyError("absent")

        class Mine(ValueError):
            pass

        raise Mine("my own")

    app = image(trixie_image)(python_app(fail))
    with pytest.raises(KeyError) as caught:
        app("key").result()
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(ValueError, match="my own") as other:
        app("mine").result()
    assert isinstance(other.value, ImageTaskError) and other.value.remote_type.endswith("Mine")


def test_what_cannot_be_pickled_fails_one_task_and_hangs_nothing(executor: None, trixie_image: str) -> None:
    def generator() -> Any:
        return (each for each in range(3))

    app = image(trixie_image)(python_app(generator))
    with pytest.raises(ImageTaskError, match="cannot be pickled"):
        app().result(timeout=60)


def test_a_lambda_is_refused_at_submit_for_another_python(trixie_image: str) -> None:
    prefetch(trixie_image)
    twice = python_app(lambda value: 2 * value)
    with workflow(ThreadPoolExecutor(label="threads")):
        app = image(trixie_image)(twice)
        RESOLVER.choices(_wish(trixie_image)).result()
        with pytest.raises(UsageError, match=r"cannot run on the image's Python 3\.13"):
            app(1)


def _wish(reference: str) -> Any:
    from udi_parsl.images import Wish

    return Wish.parse(reference)


def test_bash_apps_keep_parsls_streams_files_and_exit_codes(
    executor: None, base_image: str, nopython_image: str, tiny_image: str, tmp_path: Path
) -> None:
    def copy(inputs: Any = (), outputs: Any = (), stdout: str = "out.txt", stderr: str = "err.txt") -> str:
        return f"cat {inputs[0]} > {outputs[0]}; echo to-stdout; echo to-stderr >&2"

    Path("in.txt").write_text("content")
    for name in (base_image, nopython_image, tiny_image):
        app = image(name)(bash_app(copy))
        future = app(inputs=[File("in.txt")], outputs=[File(str(tmp_path / "result.txt"))])
        assert future.result() == 0
        assert Path("result.txt").read_text() == "content"
        assert Path("out.txt").read_text() == "to-stdout\n"
        assert "to-stderr\n" in Path("err.txt").read_text()
        for each in ("result.txt", "out.txt", "err.txt"):
            Path(each).unlink()


def test_bash_apps_fail_as_parsls_do(executor: None, base_image: str, nopython_image: str) -> None:
    def leave() -> str:
        return "exit 7"

    def forget(outputs: Any = ()) -> str:
        return "true"

    def linger(walltime: float = 1) -> str:
        return "sleep 60"

    for name in (base_image, nopython_image):
        with pytest.raises(BashExitFailure) as caught:
            image(name)(bash_app(leave))().result()
        assert caught.value.exitcode == 7
        with pytest.raises(MissingOutputs):
            image(name)(bash_app(forget))(outputs=[File("never")]).result()
        begin = time.monotonic()
        with pytest.raises(AppTimeout):
            image(name)(bash_app(linger))().result()
        assert time.monotonic() - begin < 30


def test_walltime_ends_a_python_task_and_the_next_one_runs(base_image: str) -> None:
    def linger(seconds: float, walltime: float = 1) -> str:
        import time

        time.sleep(seconds)
        return "done"

    app = image(base_image)(python_app(linger))
    with workflow(htex(UDIHighThroughputExecutor)):
        assert app(0, walltime=60).result() == "done"
        with pytest.raises(AppTimeout):
            app(60).result(timeout=60)
        assert app(0, walltime=60).result() == "done"


def test_a_killed_agent_costs_one_try(base_image: str, tmp_path: Path) -> None:
    def die_once(marker: str) -> str:
        import os
        import signal

        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    app = image(base_image)(python_app(die_once))
    with workflow(htex(UDIHighThroughputExecutor), retries=1, retry_handler=retry_handler):
        assert app(str(tmp_path / "marker")).result(timeout=120) == "survived"
    with workflow(htex(UDIHighThroughputExecutor)), pytest.raises(AgentLost):
        app(str(tmp_path / "other")).result(timeout=120)


def test_a_killed_worker_takes_its_agent_along_and_the_task_runs_again(base_image: str, tmp_path: Path) -> None:
    def linger_once(marker: str) -> str:
        import os
        import time

        if os.path.exists(marker):
            return "done"
        with open(marker + ".new", "w") as file:
            file.write(f"{os.getpid()} {os.getppid()}")
        os.rename(marker + ".new", marker)
        time.sleep(600)
        return "not killed"

    marker = tmp_path / "pids"
    # Once in a heartbeat Parsl looks whether its workers live.
    executor = htex(UDIHighThroughputExecutor, heartbeat_period=2)
    with workflow(executor, retries=1, retry_handler=retry_handler):
        future = image(base_image)(python_app(linger_once))(str(marker))
        assert _comes(marker.exists)
        agent, sandbox = map(int, marker.read_text().split())
        worker = _parent_of(sandbox)
        assert "multiprocessing" in Path(f"/proc/{worker}/cmdline").read_text()
        os.kill(worker, signal.SIGKILL)
        assert _comes(lambda: not os.path.exists(f"/proc/{agent}"))
        assert future.result(timeout=120) == "done"


def _comes(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_a_worker_keeps_as_many_idle_agents_as_it_may(
    base_image: str, trixie_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pid() -> int:
        import os

        return os.getpid()

    monkeypatch.setenv("UDI_PARSL_AGENTS", "1")
    with workflow(htex(UDIHighThroughputExecutor, workers=1)):
        one, other = (image(name)(python_app(pid)) for name in (base_image, trixie_image))
        agent = one().result()
        assert one().result() == agent
        other().result()
        assert _comes(lambda: not os.path.exists(f"/proc/{agent}"))
        assert one().result() != agent


def test_the_end_of_an_executor_ends_its_bash_tasks(base_image: str, tmp_path: Path) -> None:
    def linger(marker: str) -> str:
        return f"echo $$ > {marker}; exec sleep 300"

    marker = tmp_path / "pid"
    with workflow(htex(UDIHighThroughputExecutor), exit_mode="cleanup"):
        image(base_image)(bash_app(linger))(str(marker))
        assert _comes(lambda: marker.exists() and bool(marker.read_text().strip()))
        pid = int(marker.read_text())
    assert _comes(lambda: not os.path.exists(f"/proc/{pid}"))


def _parent_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    parent = int(fields[1])
    # bubblewrap is one process or two, by what it unshares.
    return parent if "bwrap" not in Path(f"/proc/{parent}/comm").read_text() else _parent_of(parent)


def test_a_pull_that_fails_is_a_dependency_error_that_says_why(registry: Any) -> None:
    app = image(f"docker:{registry.host}/no/such:image")(python_app(describe))
    with workflow(ThreadPoolExecutor(label="threads")), pytest.raises(DependencyError) as caught:
        app(1).result(timeout=60)
    assert "does not exist" in str(caught.value)


def test_a_moved_tag_is_another_memo_key(registry: Any, push: Any, tmp_path: Path, base_image: str) -> None:
    from tests.support import images

    def flavour(value: int) -> str:
        return open("/flavour").read()

    results = []
    for version in ("one", "one", "two"):
        layout = images.derive(
            images.image("base"), tmp_path / f"layout-{version}", [oci.Layer.of(oci.file("flavour", version))]
        )
        reference = registry.push(layout, "memo/image")
        RESOLVER.forget()
        memoizer = BasicMemoizer(checkpoint_mode="task_exit", checkpoint_files=_checkpoints())
        with workflow(ThreadPoolExecutor(label="threads"), memoizer=memoizer):
            app = image(reference)(python_app(cache=True)(flavour))
            future = app(1)
            results.append((future.result(), future.task_record["from_memo"]))
    assert results == [("one", False), ("one", True), ("two", False)]


def _checkpoints() -> list[str]:
    return sorted(str(each) for each in Path("runinfo").glob("*/checkpoint"))


def test_join_app_gives_its_image_to_the_apps_inside(trixie_image: str) -> None:
    inner = python_app(describe)

    def outer() -> Any:
        return inner(2)

    with workflow(ThreadPoolExecutor(label="threads")):
        assert image(trixie_image)(join_app(outer))().result() == ("trixie", [3, 13], 42)


def test_an_executor_with_a_default_image_runs_plain_apps_in_it(trixie_image: str, base_image: str) -> None:
    def command(stdout: str = "out.txt") -> str:
        return ". /etc/os-release && echo $VERSION_CODENAME"

    with workflow(htex(UDIHighThroughputExecutor, image=trixie_image)):
        assert python_app(describe)(2).result() == ("trixie", [3, 13], 42)
        assert bash_app(command)().result() == 0
        assert Path("out.txt").read_text() == "trixie\n"
        assert image(base_image)(python_app(describe))(2).result()[0] == "bookworm"


def test_a_call_may_name_its_own_image_or_one_for_each_kind_of_node(
    base_image: str, trixie_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UDI_NODE_KIND", "haswell")
    app = image(base_image)(python_app(describe))
    with workflow(ThreadPoolExecutor(label="threads")):
        assert app(2, udi_image=trixie_image).result()[0] == "trixie"
        assert app(2, udi_image={"v4": base_image, "v2": trixie_image}).result()[0] == "trixie"
        assert app(2).result()[0] == "bookworm"


def test_setup_env_volumes_and_directory(executor: None, base_image: str, tmp_path: Path) -> None:
    def look() -> tuple[str, str, str]:
        import os

        return os.environ["FROM_SETUP"], os.environ["FROM_ENV"], open("/data/file").read()

    def command(stdout: str = "out.txt") -> str:
        return "echo $FROM_SETUP $FROM_ENV $(cat /data/file) $(pwd)"

    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("volume")
    around = image(base_image, setup="export FROM_SETUP=setup", env={"FROM_ENV": "env"}, volumes=[f"{data}:/data:ro"])
    assert around(python_app(look))().result() == ("setup", "env", "volume")
    around(bash_app(command))().result()
    assert Path("out.txt").read_text().split()[:3] == ["setup", "env", "volume"]


def test_an_image_without_python_is_a_clear_error_for_python_apps(nopython_image: str) -> None:
    prefetch(nopython_image)
    app = image(nopython_image)(python_app(describe))
    with (
        workflow(ThreadPoolExecutor(label="threads")),
        pytest.raises((UsageError, DependencyError), match="no Python 3"),
    ):
        app(1).result()


def test_decorators_in_the_wrong_order_are_refused(base_image: str) -> None:
    with pytest.raises(UsageError, match="must stand above"):
        image(base_image)(describe)  # type: ignore[type-var]
    with pytest.raises(UsageError, match="has an image already"):
        image(base_image)(image(base_image)(python_app(describe)))


def test_large_arguments_and_results(executor: None, base_image: str, bullseye_image: str) -> None:
    def reverse(data: bytes) -> bytearray:
        return bytearray(data)[::-1]

    data = os.urandom(1 << 20) * 32
    for name in (base_image, bullseye_image):
        assert image(name)(python_app(reverse))(data).result() == data[::-1]


def test_a_mapping_of_node_kinds_chooses_on_the_node(
    base_image: str, trixie_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workflow(ThreadPoolExecutor(label="threads")):
        app = image({"mic_knl": trixie_image, "default": base_image})(python_app(describe))
        only = image({"mic_knl": trixie_image})(python_app(describe))
        monkeypatch.setenv("UDI_NODE_KIND", "haswell")
        assert app(2).result()[0] == "bookworm"
        with pytest.raises(UsageError, match="fits this node"):
            only(2).result()
        monkeypatch.setenv("UDI_NODE_KIND", "mic_knl")
        assert app(2).result()[0] == only(2).result()[0] == "trixie"
    with pytest.raises(UsageError, match="'hasswell' is not a kind of node"):
        image({"hasswell": base_image})


@pytest.fixture
def levels(tmp_path: Path) -> str:
    """An index with an image for x86-64 levels 1, 3 and 4 each, whose ``/level`` names it."""
    layout, tiny = oci.Layout(tmp_path / "levels"), images.image("tiny")
    below = [
        oci.Layer(data=gzip.decompress(tiny.blob_path(each["digest"]).read_bytes()))
        for each in tiny.read(tiny.find())["layers"]
    ]
    made = [
        layout.add_image([*below, oci.Layer.of(oci.file("level", level))], tag=None, platform=f"linux/amd64{level}")
        for level in ("", "/v3", "/v4")
    ]
    layout.add_index(made)
    return f"oci:{layout.path}"


def test_variants_and_kinds_are_ready_for_nodes_unlike_the_submitting_machine(
    levels: str, trixie_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(stdout: Any = None) -> str:
        return "cat /level"

    def on(node: str, app: Any, **options: Any) -> str:
        monkeypatch.setenv("UDI_NODE_KIND", node)
        app(stdout=("out.txt", "w"), **options).result()
        return Path("out.txt").read_text()

    class Threads(UdiExecutorMixin, ThreadPoolExecutor):
        pass

    monkeypatch.setenv("UDI_NODE_KIND", "skylake_avx512")  # level 4
    assert len(prefetch(levels, variants=["v1"])) == 2 and len(prefetch({"haswell": levels})) == 1
    default = Threads(label="threads", image={"mic_knl": levels, "v2": trixie_image}, image_options={"setup": "true"})
    with workflow(default):
        here = image(levels)(bash_app(command))
        assert on("skylake_avx512", here) == "/v4"
        everywhere = image(levels, variants=["v3", "v1"])(bash_app(command))
        assert on("skylake_avx512", everywhere) == "/v4"
        assert [on(node, everywhere) for node in ("zen3", "haswell", "ivybridge", "nocona")] == ["/v3", "/v3", "", ""]
        knl = {"mic_knl": levels, "default": trixie_image}
        assert on("mic_knl", here, udi_image=knl) == on("mic_knl", bash_app(command)) == "/v3"
        lines = [json.loads(line) for line in Path(load_config().node_dir, "record.jsonl").read_text().splitlines()]
        ran = [line["image"] for line in lines if line["by"] == "parsl"]
        stored = {each.config.platform.variant: each.digest for each in ImageStore(load_config().store).images()}
        assert ran[:3] == [stored["v4"], stored["v4"], stored["v3"]] and len(ran) == 8
    with pytest.raises(UsageError, match="'haswell' is no x86-64 level"):
        image(levels, variants=["haswell"])
    with pytest.raises(UsageError, match="is not a platform"):
        image(levels, platform="amd64")


def test_one_pull_for_many_tasks(base_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDI_STORE", str(tmp_path / "store"))

    def same(value: int) -> int:
        return value

    with workflow(ThreadPoolExecutor(label="threads", max_threads=4)):
        app = image(base_image)(python_app(same))
        assert [each.result() for each in [app(number) for number in range(50)]] == list(range(50))
    store = ImageStore(load_config().store)
    assert len(list(store.images())) == 1
    assert pull(ImageReference.parse(base_image), store, load_config()).digest == next(store.images()).digest


class Track:
    """Of the user's script: no image has it."""

    def __init__(self, points: list[int]) -> None:
        self.points = points

    def moved(self, by: int) -> Track:
        return type(self)([each + by for each in self.points])


def move(track: Any, by: int = OFFSET) -> Any:
    return track.moved(by)


def test_classes_of_the_script_as_arguments_and_results(
    executor: None, base_image: str, trixie_image: str, bullseye_image: str
) -> None:
    for name in (base_image, trixie_image, bullseye_image):
        moved = image(name)(python_app(move))(Track([1, 2])).result()
        assert type(moved) is Track and moved.points == [41, 42]


def test_arguments_that_another_python_cannot_get_are_refused_with_the_reason(trixie_image: str) -> None:
    class Local:
        pass

    with workflow(htex(UDIHighThroughputExecutor)):
        app = image(trixie_image)(python_app(describe))
        with pytest.raises(SerializationError, match=r"arguments of 'describe' cannot be sent.*Local"):
            app(Local()).result(timeout=120)
        assert app(2).result()[0] == "trixie"


def test_the_mixin_gives_other_executors_a_default_image(trixie_image: str) -> None:
    class Threads(UdiExecutorMixin, ThreadPoolExecutor):
        pass

    def command(stdout: str = "out.txt") -> str:
        return ". /etc/os-release && echo $VERSION_CODENAME"

    lock = threading.Lock()

    def stuck() -> Any:
        return lock

    with workflow(Threads(label="threads", max_threads=2, image=trixie_image)):
        assert python_app(describe)(2).result() == ("trixie", [3, 13], 42)
        moved = python_app(move)(Track([1])).result()
        assert type(moved) is Track and moved.points == [41]
        assert bash_app(command)().result() == 0
        assert Path("out.txt").read_text() == "trixie\n"
        with pytest.raises(SerializationError, match=r"The app 'stuck' cannot be sent to its image.*lock"):
            python_app(stuck)().result()


def test_tasks_of_mpi_executor_know_their_nodes_and_launcher(base_image: str, tmp_path: Path) -> None:
    def command(stdout: str = "out.txt", parsl_resource_specification: Any = None) -> str:
        return "echo $IMAGE_NAME: $PARSL_MPI_PREFIX"

    def function(parsl_resource_specification: Any = None) -> list[str]:
        import os

        return [os.environ["IMAGE_NAME"], os.environ["PARSL_NUM_RANKS"]]

    (tmp_path / "nodes").write_text("nid1\nnid2\n")
    setup = f"export PYTHONPATH={REPOSITORY}:$PYTHONPATH PBS_NODEFILE={tmp_path}/nodes"
    provider = LocalProvider(init_blocks=1, max_blocks=1, worker_init=setup, launcher=SimpleLauncher())
    with workflow(MPIExecutor(label="mpi", max_workers_per_block=1, provider=provider)):
        nodes = {"num_nodes": 2, "ranks_per_node": 3}
        bash = image(base_image)(bash_app(command))
        assert bash(parsl_resource_specification=nodes).result(timeout=120) == 0
        words = Path("out.txt").read_text().split()
        assert words[:6] == ["base:", "mpiexec", "-n", "6", "-ppn", "3"] and sorted(words[7].split(",")) == [
            "nid1",
            "nid2",
        ]
        python = image(base_image)(python_app(function))
        assert python(parsl_resource_specification={"num_nodes": 1, "ranks_per_node": 2}).result(timeout=120) == [
            "base",
            "2",
        ]


def test_the_example_with_three_pythons(bullseye_image: str, trixie_image: str) -> None:
    script = REPOSITORY / "examples/parsl/two_images.py"
    env = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = run([sys.executable, str(script), bullseye_image, trixie_image], env=env, timeout=300)
    head, *lines = done.stdout.decode().splitlines()
    assert head.startswith("analysed on Debian GNU/Linux 13") and head.endswith(platform.python_version())
    assert len(lines) == 20
    assert all("simulated by Python 3.9." in each and "analysed by 3.13." in each for each in lines)
