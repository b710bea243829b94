"""Parsl's monitoring sees what a task uses inside its image."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import parsl
import pytest
from parsl import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.monitoring import MonitoringHub
from parsl.providers import LocalProvider
from udi_parsl import UDIHighThroughputExecutor, image
from udi_parsl.images import RESOLVER

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry", "apt-get")

SIZE = 300 << 20


@pytest.mark.parametrize("kind", [HighThroughputExecutor, UDIHighThroughputExecutor])
def test_memory_and_cpu_of_the_image_are_counted(
    kind: type[HighThroughputExecutor],
    trixie_image: str,
    udi_env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sqlalchemy")
    for key, value in udi_env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    RESOLVER.forget()  # this test has a store of its own

    def work(size: int) -> int:
        import time

        data = bytearray(b"x") * size
        end = time.process_time() + 3
        while time.process_time() < end:
            pass
        return len(data)

    executor = kind(
        label="htex", max_workers_per_node=1, encrypted=False, provider=LocalProvider(init_blocks=1, max_blocks=1)
    )
    hub = MonitoringHub(resource_monitoring_enabled=True, resource_monitoring_interval=1)
    with parsl.load(Config(executors=[executor], monitoring=hub, run_dir="runinfo", strategy="none")):
        assert image(trixie_image)(python_app(work))(SIZE).result(timeout=120) == SIZE
    parsl.clear()
    with sqlite3.connect("runinfo/monitoring.db") as database:
        query = "select max(psutil_process_memory_resident), max(psutil_process_time_user) from resource"
        memory, seconds = database.execute(query).fetchone()
    assert memory > SIZE
    assert seconds > 0.1  # sampled once a second, on a machine that may be busy
