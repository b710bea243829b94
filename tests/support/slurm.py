"""A real Slurm of virtual nodes on one machine: real slurmctld, real slurmds, real munge.

Every node is a slurmd in a mount and UTS namespace of its own, with a host name of its own and a node-local
tmpfs at the same path on every node, so that what one node mounts is not seen on another, as on a cluster.
Half of the nodes carry the feature ``haswell``, the other half ``knl``; and ``cpu`` or ``gpu``.

Needs root, and Debian's ``slurm-wlm`` and ``munge`` (Debian builds slurmd with ``--enable-multiple-slurmd``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo", "unshare")


class SlurmFailed(RuntimeError):
    """The virtual cluster did not come up; the message holds the ends of its logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """A running virtual cluster.

    Attributes:
        conf: path of slurm.conf; the ``SLURM_CONF`` of every client.
        local: directory that is a tmpfs of its own on every node.
        nodes: node names, ``h1 … k1 …``.
    """

    conf: str
    local: str
    nodes: tuple[str, ...]

    def pid(self, node: str) -> int:
        """The process of a node's slurmd."""
        return int(Path(self.conf).with_name(f"slurmd-{node}.pid").read_text())

    def on_node(self, node: str, *argv: str) -> str:
        """The output of a program that runs on a node, but not in a job: as an administrator would look at it."""
        inside = ["nsenter", f"--target={self.pid(node)}", "--mount", "--uts", "--wd=/"]
        return subprocess.run([*inside, *argv], env=self.env, capture_output=True, text=True, check=True).stdout

    @property
    def env(self) -> dict[str, str]:
        """The caller's environment with ``SLURM_CONF`` set and no trace of another allocation."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return {**kept, "SLURM_CONF": self.conf}

    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, timeout: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a client (``srun -N4 hostname``) on the submit side, both outputs captured."""
        return subprocess.run(
            argv,
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
        )


@contextlib.contextmanager
def virtual_slurm(
    directory: str | os.PathLike[str],
    nodes: int = 8,
    *,
    cpus: int = 2,
    settings: Sequence[str] = (),
    timeout: float = 90,
) -> Iterator[Slurm]:
    """Bring a cluster of ``nodes`` nodes up under ``directory``, and down again at the end of the block.

    ``settings`` are further lines for slurm.conf (``Prolog=…``).
    """
    top = Path(directory).resolve()
    local = top / "local"
    for made in (top, top / "state", local):
        made.mkdir(parents=True, exist_ok=True)
        made.chmod(0o755)
    local.chmod(0o1777)  # the submit side is a node too
    names = tuple(f"h{i + 1}" for i in range(nodes - nodes // 2)) + tuple(f"k{i + 1}" for i in range(nodes // 2))
    controller, *node_ports = _free_ports(1 + nodes)
    conf = top / "slurm.conf"
    conf.write_text(_slurm_conf(top, names, controller, node_ports, cpus, settings))
    # The nodes share /tmp, in which PMIx's servers make directories of the same name.
    conf.with_name("mpi.conf").write_text(f"PMIxCliTmpDirBase={local}\n")
    _resolvable(socket.gethostname())
    try:
        _start_munge(top)
        _start(["slurmctld", "-c", "-f", str(conf)], top / "slurmctld.out")
        for name in names:
            (top / f"spool-{name}").mkdir(exist_ok=True)
            # The tmpfs must be mounted inside the namespace; a private propagation keeps it there.
            script = 'hostname "$1" && mount -t tmpfs -o mode=1777 "$1" "$2" && exec slurmd -N "$1" -f "$3"'
            argv = ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", script, "sh"]
            _start([*argv, name, str(local), str(conf)], top / f"slurmd-{name}.out")
        slurm = Slurm(conf=str(conf), local=str(local), nodes=names)
        _wait_idle(slurm, top, timeout)
        yield slurm
    finally:
        _stop(top)


def _slurm_conf(
    top: Path, names: Sequence[str], controller: int, ports: Sequence[int], cpus: int, settings: Sequence[str]
) -> str:
    host = socket.gethostname()
    lines = [
        "ClusterName=virtual",
        f"SlurmctldHost={host}(127.0.0.1)",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={top}/munge.sock",
        "MpiDefault=none",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "ReturnToService=2",
        f"SlurmctldPort={controller}",
        f"SlurmctldPidFile={top}/slurmctld.pid",
        f"SlurmctldLogFile={top}/slurmctld.log",
        f"SlurmdPidFile={top}/slurmd-%n.pid",
        f"SlurmdLogFile={top}/slurmd-%n.log",
        f"SlurmdSpoolDir={top}/spool-%n",
        f"StateSaveLocation={top}/state",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        # More CPUs than the machine has: nodes are virtual, and slurmd must not drain them for it.
        "SlurmdParameters=config_overrides",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,defer_batch",
        "KillWait=2",
        "MinJobAge=300",
        # MPICH names its shared memory by the job, and the nodes of all virtual clusters of a machine share /dev/shm.
        f"FirstJobId={1 + secrets.randbelow(60_000_000)}",
        *settings,
    ]
    for name, port in zip(names, ports, strict=True):
        feature = "haswell,cpu" if name.startswith("h") else "knl,gpu"
        lines.append(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            f" CPUs={cpus} RealMemory=2000 Feature={feature} State=UNKNOWN"
        )
    lines.append("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES")
    return "\n".join(lines) + "\n"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _resolvable(host: str) -> None:
    """slurmd looks its host's name up: 127.0.0.1 must answer to it, which a bare machine does not arrange."""
    try:
        socket.gethostbyname(host)
    except OSError:
        with open("/etc/hosts", "a") as hosts:
            hosts.write(f"127.0.0.1 {host}\n")


def _start_munge(top: Path) -> None:
    key = top / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
    _start(
        [
            "munged",
            "--force",
            f"--socket={top}/munge.sock",
            f"--key-file={key}",
            f"--pid-file={top}/munged.pid",
            f"--log-file={top}/munged.log",
            f"--seed-file={top}/munged.seed",
        ],
        top / "munged.out",
    )


def _start(argv: Sequence[str], log: Path) -> None:
    """Run a program that puts itself into the background."""
    with open(log, "ab") as output:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if done.returncode:
        raise SlurmFailed(f"{argv[0]} failed with status {done.returncode}:\n{log.read_text()[-2000:]}")


def _wait_idle(slurm: Slurm, top: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        seen = slurm.run("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).stdout.split()
        if seen == [str(len(slurm.nodes))]:
            return
        time.sleep(0.2)
    logs = "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in sorted(top.glob("*.log"))[:4])
    raise SlurmFailed(f"not all {len(slurm.nodes)} nodes were idle within {timeout:.0f} s\n{logs}")


def _stop(top: Path) -> None:
    """End every daemon whose pid file is there, and all that runs on the nodes.

    At once: what daemons would save takes seconds and is of no use, and steps of jobs that are still completing, which
    ask the controller in vain, would go on for minutes.
    """
    daemons = {pid for file in top.glob("*.pid") if (pid := _number(file))}
    with _namespaces(top) as nodes:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            # What has ended and only waits for its parent has no namespace any more.
            daemons = {pid for pid in daemons if _namespace(pid)}
            left = daemons.union(pid for pid in _pids() if _namespace(pid) in nodes)
            if not left:
                break
            for pid in left:
                _signal(pid, signal.SIGKILL)
            time.sleep(0.02)
    for spool in top.glob("spool-*"):
        shutil.rmtree(spool, ignore_errors=True)


def _number(file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return 0


@contextlib.contextmanager
def _namespaces(top: Path) -> Iterator[set[int]]:
    """The mount namespaces of the nodes, which no process outside of a node is in.

    They are held: the kernel gives the number of one that is gone to the next sandbox of anybody.
    """
    with contextlib.ExitStack() as held:
        numbers = set()
        for file in top.glob("slurmd-*.pid"):
            with contextlib.suppress(OSError):
                namespace = held.enter_context(open(f"/proc/{_number(file)}/ns/mnt"))
                numbers.add(os.fstat(namespace.fileno()).st_ino)
        yield numbers - {_namespace(os.getpid())}


def _namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
