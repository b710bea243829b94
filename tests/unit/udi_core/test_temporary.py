"""Directories that go with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from udi_core import temporary


def test_made_and_removed(tmp_path: Path) -> None:
    near = f"{tmp_path}/node"
    path, fd = temporary.make(near)
    assert os.stat(path).st_mode & 0o777 == 0o700 and not os.get_inheritable(fd)
    temporary.sweep(near)
    other, other_fd = temporary.make(near)
    Path(path, "file").write_text("x")
    temporary.remove(path, fd)
    assert os.listdir(f"{near}/tmp") == [os.path.basename(other)]
    temporary.remove(other, other_fd)
    assert os.listdir(near) == []


def test_what_a_killed_process_leaves_goes_with_the_next_one(tmp_path: Path) -> None:
    near = f"{tmp_path}/node"
    program = f"from udi_core import temporary; print(*temporary.make({near!r}), flush=True); input()"
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, cwd=Path(__file__).parents[3], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        left = process.stdout.readline().split()[0]
        (Path(left) / "closed").mkdir(0o500)
        temporary.sweep(near)
        assert os.path.isdir(left)
        process.send_signal(signal.SIGKILL)
    path, fd = temporary.make(near)
    assert os.listdir(f"{near}/tmp") == [os.path.basename(path)]
    temporary.remove(path, fd)


def test_makers_and_sweepers_at_once(tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(50):
            path, fd = temporary.make(str(tmp_path))
            temporary.sweep(str(tmp_path))
            assert os.path.isdir(path)
            temporary.remove(path, fd)
            done.append(path)

    tmp_path.chmod(0o700)
    done: list[str] = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 200 and os.listdir(tmp_path) == []


def test_a_directory_of_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError):
        temporary.make(str(tmp_path))
