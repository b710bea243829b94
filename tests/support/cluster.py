"""UDI on a virtual Slurm: a program ``udi`` for every account, and a place that all nodes share."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import user
from tests.support.slurm import Slurm, virtual_slurm

#: Options of Snakemake for jobs of the executor that are short and soon seen to end.
SHORT_JOBS = (
    *("--sdm", "apptainer", "--executor", "slurm", "--jobs", "4", "--latency-wait", "60"),
    *("--slurm-init-seconds-before-status-checks", "1", "--default-resources", "mem_mb=100", "runtime=10"),
)
CONTRIB = Path(__file__).resolve().parents[2] / "contrib"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Somebody who uses the cluster.

    Attributes:
        env: what every program of this account runs with; ``udi`` is in its PATH.
        directory: that all nodes see and the account may write to.
        store: the account's image store.
    """

    slurm: Slurm
    uid: int
    prefix: tuple[str, ...]
    env: Mapping[str, str]
    directory: Path
    store: Path

    @property
    def node_dir(self) -> str:
        """The node directory, on every node."""
        return f"{self.slurm.local}/udi-{self.uid}"

    def run(self, *argv: str, check: bool = True, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program on the submit side, both outputs captured."""
        done = subprocess.run(
            [*self.prefix, *argv],
            env={**self.env, **env},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{shlex.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def write(self, name: str, text: str) -> Path:
        """A file in :attr:`directory`."""
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o755)
        os.chown(path, self.uid, -1)
        return path

    def snakemake(self, *options: str, timeout: float) -> str:
        """Run the workflow in :attr:`directory` through the slurm executor, to its good end; all that was said."""
        # Snakemake's jobs take every SLURM_ variable away; a cluster's configuration is in /etc, and this one's is not.
        self.write("srun", f'#!/bin/sh\nSLURM_CONF={self.slurm.conf} exec {shutil.which("srun")} "$@"\n')
        done = self.run(
            *(sys.executable, "-m", "snakemake"),
            # This cluster keeps no accounts.
            *("--slurm-no-account", "--slurm-status-command", "squeue"),
            *options,
            check=False,
            timeout=timeout,
            UDI_SNAKEMAKE="1",
        )
        logs = (self.directory / ".snakemake" / "slurm_logs").rglob("*.log")
        said = "\n".join([done.stdout, done.stderr, *(log.read_text() for log in logs)])
        assert done.returncode == 0, said
        return said

    def submit(
        self, script: Path, *options: str, program: Sequence[str] = ("sbatch",), arguments: Sequence[str] = ()
    ) -> str:
        """Submit a batch script; its job's id."""
        words = ["--parsable", f"--output={self.directory}/%j.out", *options, str(script), *arguments]
        done = self.run(*program, *words)
        return done.stdout.split()[-1]

    def status(self, job: str) -> str:
        """The exit status of a job (``"3:0"``, status and signal), waited for; sbatch --wait asks every 10 s only."""
        found: list[str] = []

        def ended() -> bool:
            shown = self.run("scontrol", "show", "job", job).stdout
            fields = dict(word.partition("=")[::2] for word in shown.split())
            found[:] = [fields["ExitCode"]]
            return fields["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")

        wait_until(ended, lambda: f"end of job {job}:\n{self.output(job)}")
        return found[0]

    def output(self, job: str) -> str:
        """What a job has said so far."""
        path = self.directory / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def left_on(self, node: str) -> list[str]:
        """What this account has on a node: mounts, files, and processes that name its node directory."""
        mounts = self.slurm.on_node(node, "cat", "/proc/self/mounts").splitlines()
        found = [line for line in mounts if f"{self.node_dir}/" in line]
        found += self.slurm.on_node(node, "sh", "-c", f"ls -A {self.node_dir} 2>/dev/null || true").split()
        namespace = os.stat(f"/proc/{self.slurm.pid(node)}/ns/mnt").st_ino
        for pid in user.processes_of(self.node_dir):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{pid}/ns/mnt").st_ino == namespace:
                    found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return found


def wait_until(true: Callable[[], object], what: Callable[[], object] | str, seconds: float = 120) -> None:
    """Ask again and again until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"within {seconds} s there was no {what() if callable(what) else what}"
        time.sleep(0.1)


@contextlib.contextmanager
def cluster(nodes: int, *settings: str, hooks: bool = False) -> Iterator[Slurm]:
    """A virtual Slurm below a short path that every account may enter; ``hooks`` are contrib's prolog and epilog."""
    top = Path(tempfile.mkdtemp(prefix="udi-slurm-"))
    top.chmod(0o755)
    try:
        lines = list(settings)
        if hooks:
            for name in ("prolog", "epilog"):
                script = top / f"{name}.sh"
                script.write_text(
                    f"#!/bin/sh\nexport SLURM_CONF={top}/slurm.conf UDI_PROGRAM={top}/bin/udi\n"
                    f"exec {shutil.copy(CONTRIB / 'slurm' / f'{name}.sh', top / f'contrib-{name}.sh')}\n"
                )
                script.chmod(0o755)
                lines.append(f"{name.capitalize()}={script}")
            lines.append("PrologFlags=Alloc")
        # By what a site tells jobs what a node is: half of the nodes pretend to be Haswells, half Knights Landings.
        kinds = top / "task-prolog.sh"
        kinds.write_text(
            "#!/bin/sh\ncase $SLURMD_NODENAME in h*) kind=haswell ;; *) kind=mic_knl ;; esac\n"
            "echo export UDI_NODE_KIND=$kind\n"
        )
        kinds.chmod(0o755)
        lines.append(f"TaskProlog={kinds}")
        with virtual_slurm(top, nodes, settings=lines) as slurm:
            yield slurm
    finally:
        user.clean_up(top)


@contextlib.contextmanager
def account(slurm: Slurm, who: user.OrdinaryUser | None = None, **more: str) -> Iterator[Account]:
    """An account of the cluster: root, or an ordinary user; ``more`` is added to the environment of its programs."""
    top = Path(slurm.conf).parent
    uid, gid = (who.uid, who.gid) if who else (0, 0)
    directory = Path(tempfile.mkdtemp(prefix=f"shared-{uid}-", dir=top))
    for path in (directory, directory / "home", directory / "store"):
        path.mkdir(exist_ok=True)
        os.chown(path, uid, gid)
    env = {**(who.env if who else slurm.env), "SLURM_CONF": slurm.conf, "HOME": str(directory / "home"), **more}
    for name in [each for each in env if each.startswith(("SLURM_JOB", "XDG_", "SBATCH_"))]:
        del env[name]
    settings = {
        "UDI_STORE": str(directory / "store"),
        "UDI_NODE_DIR": f"{slurm.local}/udi-{uid}",
        "UDI_RECORD_DIR": str(directory / "home" / "records"),
        "UDI_SITE_CONFIG": "/nonexistent",
        "UDI_CONFIG": "/nonexistent",
    }
    if "PYTHONPATH" in env:
        settings["PYTHONPATH"] = env["PYTHONPATH"]
    python = who.python if who else sys.executable
    program = directory / "udi"
    program.write_text(
        "#!/bin/sh\n"
        + "".join(f"export {key}={shlex.quote(value)}\n" for key, value in settings.items())
        + f'exec {python} -m udi_core "$@"\n'
    )
    program.chmod(0o755)
    # One program for prolog and epilog, which serve all accounts.
    common = top / "bin" / "udi"
    common.parent.mkdir(exist_ok=True)
    (common.parent / f"udi-{uid}").unlink(missing_ok=True)
    (common.parent / f"udi-{uid}").symlink_to(program)
    kind = "case $SLURMD_NODENAME in h*) UDI_NODE_KIND=haswell ;; *) UDI_NODE_KIND=mic_knl ;; esac"
    common.write_text(f'#!/bin/sh\n{kind}\nexport UDI_NODE_KIND\nexec {common}-$(id -u) "$@"\n')
    common.chmod(0o755)
    env |= {**settings, "PATH": f"{directory}:{os.path.dirname(sys.executable)}:{env['PATH']}"}
    yield Account(
        slurm=slurm,
        uid=uid,
        prefix=who.prefix if who else (),
        env=env,
        directory=directory,
        store=directory / "store",
    )
