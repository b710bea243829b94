"""The run record of real tasks: written by each of the ways into an image, handed in, added up, drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from udi_snakemake.activation import front_directory

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry", "apt-get")

_PARSL = """
import sys, parsl
from udi_parsl import image
from parsl.config import Config
from parsl.executors import ThreadPoolExecutor
from parsl import python_app, bash_app

@image(sys.argv[1])
@python_app
def work(n):
    return sum(range(n))

@image(sys.argv[1])
@python_app
def fail():
    raise ValueError("no")

@image(sys.argv[1])
@bash_app
def shell():
    return "exit 0"

with parsl.load(Config(executors=[ThreadPoolExecutor(max_threads=1)], run_dir=sys.argv[2])):
    work(1000).result()
    shell().result()
    assert isinstance(fail().exception(), ValueError)
"""


def test_what_ran_is_recorded_handed_in_and_reported(base_image: str, udi_env: dict[str, str], tmp_path: Path) -> None:
    def run(*argv: str) -> str:
        done = subprocess.run(argv, env=udi_env, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    udi = (sys.executable, "-m", "udi_core")
    run(*udi, "run", base_image, "--", "/bin/true", "secret")
    run(*udi, "run", base_image, "--", "/bin/true", "secret")
    run(sys.executable, "-c", _PARSL, base_image, str(tmp_path / "runinfo"))
    live = Path(udi_env["UDI_NODE_DIR"], "record.jsonl").read_text()
    assert "secret" not in live
    lines = [json.loads(text) for text in live.splitlines()]
    assert [line["by"] for line in lines[:4]] == ["pull", "mount", "run", "run"]
    assert {line["image"] for line in lines} == {lines[0]["image"]}
    assert {line["uid"] for line in lines} == {os.getuid()}
    assert [line["program"] for line in lines[2:4]] == ["true", "true"]
    # Parsl asks the registry, too, where a tag stands: that is a pull which finds all there.
    first, shell, failed = (line for line in lines if line["by"] == "parsl")
    assert [(line.get("task"), line["exit"]) for line in (first, shell, failed)] == [
        ("work", 0),
        (shell["task"], 0),
        ("fail", 1),
    ]
    assert first["rss"] > 1 << 20
    assert all(line["setup"] > 0 and line["seconds"] > 0 for line in (first, shell, failed))

    udi_env["UDI_IDLE"] = "0"
    run(*udi, "node", "clean")
    assert not os.path.exists(udi_env["UDI_NODE_DIR"])
    (handed_in,) = Path(udi_env["HOME"], ".local/state/udi/records").iterdir()
    assert handed_in.read_text() == live

    document = json.loads(run(*udi, "report", "--json", "--svg", "where.svg"))
    assert (document["lookups"], document["unique_images"], document["unique_users"]) == (5, 1, 1)
    assert (document["total"]["mounts"], document["total"]["failed"]) == (1, 1)
    ET.parse(tmp_path / "where.svg")
    table = run(*udi, "report", str(handed_in))
    assert "5 look-ups, 1 unique image, 1 unique user (" in table
    _, _, heading, image, _, _, node = table.splitlines()
    assert heading.split()[:4] == ["NODES", "TASKS", "FAILED", "MOUNTS"] and heading.endswith("  IMAGE")
    assert image.split()[:4] == ["1", "5", "1", "1"]
    assert image.endswith("  " + base_image.removeprefix("docker:"))  # whole, however narrow the terminal is
    assert node.endswith("  " + lines[0]["node"])


def test_how_tasks_ended_that_nobody_waits_for(base_image: str, udi_env: dict[str, str], tmp_path: Path) -> None:
    """Snakemake's, since bubblewrap is there anyway; those of ``udi run`` on request."""

    def run(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {**udi_env, **variables}
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    udi_env |= {"UDI_PYTHON": sys.executable, "XDG_RUNTIME_DIR": str(tmp_path)}  # for the front
    udi = (sys.executable, "-m", "udi_core")
    front = os.path.join(front_directory(), "apptainer")
    assert run(front, "pull", "--name", "x.simg", "docker://" + base_image.removeprefix("docker:")).returncode == 0
    for status in (0, 3, 4):  # the first one by Python, the others repeated by the shell
        done = run(front, "exec", "x.simg", "bash", "-c", f"sleep 0.2; exit {status}")
        assert done.returncode == status, done.stderr
    assert len(list(Path(udi_env["UDI_NODE_DIR"], "tasks").iterdir())) == 3
    killed = "exec 2>&-; kill -KILL $PPID; sleep 600"  # bubblewrap, and so itself
    assert run(front, "exec", "x.simg", "bash", "-c", killed).returncode < 0
    slow = ("bash", "-c", "sleep 0.2; exit 5")
    assert run(*udi, "run", base_image, "--", *slow, UDI_RECORD_DURATIONS="1").returncode == 5
    refused = run(*udi, "run", base_image, "--", "/etc/passwd", UDI_RECORD_DURATIONS="1")
    assert (refused.returncode, "cannot be executed" in refused.stderr) == (126, True)
    assert run(*udi, "run", base_image, "--", *slow).returncode == 5

    document = json.loads(run(*udi, "report", "--json").stdout)
    assert (document["lookups"], document["total"]["failed"]) == (6, 4)
    lines = [json.loads(text) for text in Path(udi_env["UDI_NODE_DIR"], "record.jsonl").read_text().splitlines()]
    tasks = sorted((line for line in lines if line["by"] in ("snakemake", "run")), key=lambda line: line["start"])
    assert [line.get("exit") for line in tasks] == [0, 3, 4, -1, 5, None]
    assert [line["by"] for line in tasks] == ["snakemake"] * 4 + ["run"] * 2
    assert all(line["seconds"] > 0.15 for line in (*tasks[:3], tasks[4]))
    assert not any("seconds" in line for line in (tasks[3], tasks[5]))
    assert not os.path.exists(os.path.join(udi_env["UDI_NODE_DIR"], "tasks"))


def test_a_report_of_nothing(udi_env: dict[str, str]) -> None:
    def udi(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "udi_core", *argv]
        return subprocess.run(command, env={**udi_env, **variables}, capture_output=True, text=True, timeout=60)

    assert udi("report").stdout.startswith("0 look-ups, 0 unique images, 0 unique users\n")
    off = udi("report", UDI_RECORD_DIR="off")
    assert off.returncode == 2, off.stderr
    assert "record_dir is off" in off.stderr
    assert udi("report", "--svg", "/nonexistent/x.svg").returncode == 74
    assert udi("report", "/nonexistent/records").returncode == 2
