"""Jobs in a sandbox that stands: they see, may and end as jobs of the front do, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from udi_snakemake import in_process
from udi_snakemake.activation import variables
from udi_snakemake.in_process import Asked, Kinds, split
from udi_snakemake.standing import Job

from tests.support import workflows
from tests.support.workflows import front

pytest.importorskip("snakemake")
pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry")

env = workflows.module_environment
PATIENCE = 90
#: What tells the two apart: bubblewrap stands between Snakemake and a job of the front.
PARENT = "cat /proc/$PPID/comm"


@pytest.fixture(scope="module")
def image(push: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return workflows.push_workflow_image(push, tmp_path_factory.mktemp("image") / "layout", "snakemake/standing")


class Here:
    """What a Snakemake process has: the hook's part of it, in this process and in a directory of a workflow."""

    def __init__(self, directory: Path, env: dict[str, str], pointer: str) -> None:
        self.kinds = Kinds(subprocess)
        self.env = dict(workflows.make(directory, env).env)
        self.env |= variables(self.env)
        self.pointer = pointer

    def asked(self, word: str, flags: str = "") -> Asked:
        quoted = word.replace("'", r"'\''")
        text = f" apptainer  exec --home {os.getcwd()!r} {flags} {self.pointer} bash -c '{quoted}'"
        asked = split(text, word)
        assert isinstance(asked, Asked)
        return asked

    def options(self) -> dict[str, Any]:
        return {
            "bufsize": -1,
            "shell": True,
            "stdout": subprocess.PIPE,
            "universal_newlines": True,
            "close_fds": True,
            "executable": "/bin/bash",
            "env": dict(self.env),
        }

    def by_front(self, word: str, flags: str = "") -> tuple[str, int]:
        process = subprocess.Popen(str(self.asked(word, flags)), **self.options())
        return process.communicate()[0], process.returncode

    def start(self, word: str, flags: str = "") -> Job:
        """Start a job in a sandbox, as soon as one stands."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            job = self.kinds.start(self.asked(word, flags), self.options())
            if job is not None:
                return job
            time.sleep(0.05)
        raise AssertionError("no sandbox stands")

    def by_sandbox(self, word: str, flags: str = "") -> tuple[str, int]:
        job = self.start(word, flags)
        with job.stdout as file:
            text = file.read()
        return text, job.wait()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str], image: str) -> Iterator[Here]:
    work = tmp_path_factory.mktemp("here")
    pointer = work / "image.simg"
    done = front(env, ["pull", str(pointer), image])
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_process, "_PAUSE", 0.2)
        patch.setattr(in_process, "_SOON", 0.2)
        patch.chdir(work)
        found = Here(work, env, str(pointer))
        yield found
        found.kinds.close()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class TestLikeTheFront:
    """Jobs of both kinds, side by side."""

    def test_what_a_job_sees_and_may(self, here: Here) -> None:
        word = (
            "env | grep -v -e ^_= | sort; pwd; id; umask; ulimit -a; cat /opt/marker; "
            "grep -E '^(NoNewPrivs|Cap(Inh|Prm|Eff|Amb)|Sig(Blk|Ign)):' /proc/self/status; "
            # Below /tmp, others on this machine mount as they please.
            "cut -d' ' -f5,6 /proc/self/mountinfo | grep -v -e ^/tmp/ -e ^/var/tmp/ | sed 's/,.*//' | sort; "
            "ls /proc/self/fd | wc -l; "
            "touch /x /opt/x /usr/x 2>&1; echo written > out.txt; cat /etc/passwd"
        )
        by_front, by_sandbox = here.by_front(word), here.by_sandbox(word)
        assert by_sandbox[0].splitlines() == by_front[0].splitlines()
        assert "NoNewPrivs:\t1" in by_front[0]
        assert here.by_front(PARENT)[0] == "bwrap\n"
        assert here.by_sandbox(PARENT)[0] != "bwrap\n"

    @pytest.mark.parametrize(
        "word",
        [
            *("exit 3", "kill -9 $$", "kill -TERM $$", "nonesuch", "true | false; exit", "set -u; echo $none"),
            *("printf %s 'it''s'", "echo \"a\nb\t$HOME\" \xe9 \\\\ '*' !x", "echo " + "x" * 60_000),
        ],
        ids=range(9),
    )
    def test_what_a_job_says_and_how_it_ends(self, here: Here, word: str) -> None:
        assert here.by_sandbox(word) == here.by_front(word)


class TestLife:
    """From the first job of a kind to the end of the program."""

    def test_signals_reach_the_job_itself(self, here: Here) -> None:
        for send, status in ((Job.terminate, -signal.SIGTERM), (Job.kill, -signal.SIGKILL)):
            job = here.start("echo begun; exec sleep 1000")
            assert job.stdout.readline() == "begun\n"
            assert job.poll() is None
            send(job)
            assert job.wait() == job.poll() == status
            send(job)  # the id may be another's by now
            job.stdout.close()

    def test_many_jobs_at_once(self, here: Here) -> None:
        here.by_sandbox("true")
        seen: list[tuple[str, int]] = []
        threads = [
            threading.Thread(target=lambda n=number: seen.append(here.by_sandbox(f"echo {n}; exit {n}")))
            for number in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen, key=lambda each: each[1]) == [(f"{number}\n", number) for number in range(12)]

    def test_a_changed_file_ends_a_sandbox(self, here: Here) -> None:
        Path("vars.env").write_text("VALUE=old\n")
        flags = "--env-file vars.env"
        assert here.by_sandbox("echo $VALUE", flags) == ("old\n", 0)
        Path("vars.env").write_text("VALUE=new\n")
        wait_until(lambda: here.by_sandbox("echo $VALUE", flags) == ("new\n", 0))

    def test_a_lost_sandbox_is_replaced(self, here: Here) -> None:
        here.by_sandbox("true")
        (kind,) = [kind for kind in here.kinds._kinds.values() if kind.sandbox is not None][-1:]
        assert kind.sandbox is not None
        process = kind.sandbox._process
        # Its spares keep the connection open, and take jobs, until there are none.
        process.kill()
        wait_until(lambda: here.kinds.start(here.asked("exit 7"), here.options()) is None)
        assert here.by_sandbox("echo again; exit 5") == ("again\n", 5)

    def test_no_job_outlives_the_program(self, here: Here) -> None:
        code = f"""
            import sys
            sys.path[:0] = {sys.path!r}
            from pathlib import Path
            from udi_snakemake import in_process
            from tests.integration.test_snakemake_standing import Here
            in_process._SOON = 0.2
            here = Here.__new__(Here)
            here.kinds = in_process.Kinds(__import__("subprocess"))
            here.env, here.pointer = {here.env!r}, {here.pointer!r}
            job = here.start("echo $$; exec sleep 1000")
            print(job.stdout.readline(), end="", flush=True)
            job.wait()
        """
        program = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        with program.stdout:
            pid = int(program.stdout.readline())
            program.kill()
            program.wait()
        wait_until(lambda: is_gone(pid))


class TestSnakemake:
    """The real one, with the hook."""

    def test_a_workflow(self, tmp_path: Path, env: dict[str, str], image: str) -> None:
        """A job that is not in a sandbox that stands fails, and is tried again."""
        mark = str(tmp_path)
        workflow = workflows.make(tmp_path / "work", {**env, "MARK": mark})
        workflow.write(
            f"""
            container: "{image}"
            rule all:
                input: "shell.txt", "script.txt"
            rule shell:
                output: "shell.txt"
                retries: 180
                benchmark: "benchmark.txt"
                shell:
                    "[ $(cat /proc/$PPID/comm) != bwrap ] || {{{{ sleep 0.5; exit 3; }}}}; "
                    "cat /opt/marker > {{output}}"
            rule script:
                input: "shell.txt"
                output: "script.txt"
                script: "script.py"
            rule fails:
                input: "shell.txt"
                output: "fails.txt"
                retries: 7
                shell: "kill -9 $$"
            """
        )
        workflow.write("open(snakemake.output[0], 'w').write('by a script')\n", "script.py")
        done = workflow.run("all", "fails", "--printshellcmds", "--keep-going", check=False)
        assert done.returncode == 1
        assert workflow.read("shell.txt") == "the image's file\n"
        assert workflow.read("script.txt") == "by a script"
        assert workflow.read("benchmark.txt").startswith("s\t")
        assert "Activating singularity image" in done.stdout
        # Eight times the same, whoever started it.
        assert done.stdout.count("returned non-zero exit status 137") == 8, done.stdout
        wait_until(lambda: not processes(mark))


def processes(mark: str) -> list[str]:
    """The spares, and who keeps them, of the workflow with this mark in its environment."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if f"MARK={mark}".encode() in Path(f"/proc/{name}/environ").read_bytes():
                found.append(name)
        except OSError:
            continue
    return found
