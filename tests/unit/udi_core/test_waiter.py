"""Waiting for a task: its status, its signals, its line of the record."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from udi_core.waiter import end_as, wait_for

def start():
    os.execv(sys.argv[2], sys.argv[2:])

raise SystemExit(end_as(wait_for((sys.argv[1], '{"by":"run"'), 1000.0, start)))
"""


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 3", 3), ("kill -9 $$", -9), ("kill -USR1 $$", -10), ("kill -TERM $PPID; sleep 60 & wait", -15)],
)
def test_the_status_is_that_of_the_task_and_is_recorded(command: str, status: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    file = tmp_path / "record.jsonl"
    # Leads a group, as in a terminal that it has not: what is killed here is nobody else's.
    argv = [sys.executable, "-c", PROGRAM, str(file), "/bin/sh", "-c", command]
    done = subprocess.run(argv, start_new_session=True, cwd=Path(__file__).parents[3], timeout=120)
    assert done.returncode == status
    line = json.loads(file.read_text())
    assert line["exit"] == status
    assert line["seconds"] >= 0 and line["cpu"] >= 0 and line["rss"] > 1 << 16


def test_in_a_terminal_a_signal_of_its_keys_is_not_passed_on() -> None:
    """The terminal has told the task already, which must not hear it twice."""
    script = "trap 'echo INT' INT; trap 'echo TERM; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    program = PROGRAM.replace("def start", "wait_for.__globals__['_is_in_front'] = lambda: True\ndef start")
    argv = [sys.executable, "-c", program, "", "/bin/sh", "-c", script]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "TERM\n"
        assert process.returncode == 0
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_that_comes_before_it_can_be_passed_on(number: signal.Signals) -> None:
    early = f"import time\ndef start():\n    os.kill(os.getppid(), {int(number)})\n    time.sleep(60)\n"
    program = PROGRAM.replace("raise SystemExit", f"{early}\nraise SystemExit")
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program, ""], cwd=Path(__file__).parents[3], timeout=120)
        assert done.returncode == -number
