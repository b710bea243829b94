"""The sandbox from inside: what a task can and cannot do, started by bubblewrap and by becoming it.

One program tries everything in an image and prints what came of it; the tables below say what must.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import user

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry", "apt-get")

PROBE = r"""
import ctypes, errno, glob, grp, json, os, pwd, resource, socket, stat, sys

home, cwd, volume, readonly, closed, suid = sys.argv[1:7]
libc = ctypes.CDLL(None, use_errno=True)
found = {}

def attempt(name, function, *arguments):
    try:
        function(*arguments)
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]

def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def write(directory):
    path = f"{directory}/written-by-{os.getpid()}"
    with open(path, "x") as file:
        file.write("x")
    os.unlink(path)

def open_for_writing(path):
    os.close(os.open(path, os.O_WRONLY))

status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
found["capabilities"] = sorted({status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")})
found["no new privileges"] = status["NoNewPrivs"].strip()
for name, path in (("/", "/"), ("/usr", "/usr/bin"), ("/etc", "/etc"), ("/sys", "/sys/kernel"), ("/proc", "/proc/sys"),
                   ("volume:ro", readonly), ("volume", volume), ("home", home), ("cwd", cwd), ("/tmp", "/tmp"),
                   ("/dev/shm", "/dev/shm")):
    attempt(f"write in {name}", write, path)
for path in ("/etc/passwd", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/power/state"):
    attempt(f"open {path} for writing", open_for_writing, path)
attempt("write to /dev/null", open_for_writing, "/dev/null")
attempt("make a device", os.mknod, f"{cwd}/device", 0o600 | stat.S_IFBLK, os.makedev(7, 0))
attempt("mount", lambda: call(libc.mount, b"none", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None))
attempt("unmount", lambda: call(libc.umount2, b"/proc", 2))
attempt("chroot", os.chroot, "/tmp")
attempt("become nobody", os.setresuid, 65534, 65534, 65534)
attempt("give a file away", lambda: (open(f"{cwd}/mine", "w").close(), os.chown(f"{cwd}/mine", 65534, 65534)))
attempt("set the host name", socket.sethostname, "nonsense")
attempt("read another's closed file", open, closed)
found["set-user-id program runs as"] = os.stat(suid).st_uid, int(os.popen(suid + " -u").read())
found["ids"] = os.getresuid(), os.getresgid()
found["name"] = pwd.getpwuid(os.getuid()).pw_name
found["group has a name"] = bool(grp.getgrgid(os.getgid()).gr_name)
found["home"] = pwd.getpwuid(os.getuid()).pw_dir == os.environ["HOME"] == home
found["block devices"] = [path for path in glob.glob("/dev/*") if stat.S_ISBLK(os.lstat(path).st_mode)] \
    if os.getuid() == 0 else []
mounts = [line.split() for line in open("/proc/self/mountinfo")]
found["mounts without nosuid"] = [
    m[4] for m in mounts if "nosuid" not in m[5].split(",") and not m[4].startswith("/dev/")
]
found["mounts with devices"] = sorted({m[4].split("/")[1] for m in mounts if "nodev" not in m[5].split(",")})
options = {option for m in mounts if m[4] in ("/", "/usr") for option in m[5].split(",")}
found["the image"] = sorted(options & {"ro", "rw"})
found["open files"] = len(os.listdir("/proc/self/fd"))
found["pid"] = os.getpid() == int(os.readlink("/proc/self"))
found["parent"] = os.getppid()
found["process"] = [os.getpid(), os.getsid(0), os.getpgid(0)]
found["cgroup"] = open("/proc/self/cgroup").read()
found["affinity"] = sorted(os.sched_getaffinity(0))
found["umask"] = os.umask(0)
found["limit"] = resource.getrlimit(resource.RLIMIT_CORE)[0]
found["host name"] = os.uname().nodename
found["resolv.conf"] = open("/etc/resolv.conf").read() if os.path.exists("/etc/resolv.conf") else ""
found["signals"] = [status["SigIgn"].strip(), status["SigBlk"].strip()]
found["cwd"] = os.getcwd() == cwd
found["old root"] = [name for name in ("/oldroot", "/newroot", "/.old") if os.path.exists(name)]
print(json.dumps(found))
"""

SPAWN = """
import sys
from udi_core import LaunchSpec, UdiError, Volume, enter, spawn
reference, *words = sys.argv[1:]
volumes, command = words[: words.index("--")], words[words.index("--") + 1 :]
try:
    spec = LaunchSpec(command=tuple(command), volumes=tuple(map(Volume.parse, volumes)))
    with enter(reference, spec) as launch:
        process = spawn(launch.argv, env=launch.env, pass_fds=launch.pass_fds)
except UdiError as error:
    sys.exit(error.exit_code)
sys.exit(process.wait())
"""

READ_ONLY = {
    "write in /": "EROFS",
    "write in /usr": "EROFS",
    "write in /etc": "EROFS",
    "write in volume:ro": "EROFS",
    "open /etc/passwd for writing": "EROFS",
}
WRITABLE = {f"write in {name}": "done" for name in ("volume", "home", "cwd", "/tmp", "/dev/shm")}
FORBIDDEN = {
    "make a device": "EPERM",
    "mount": "EPERM",
    "unmount": "EPERM",
    "chroot": "EPERM",
    "set the host name": "EPERM",
    "read another's closed file": "EACCES",
}
KERNEL = {
    "root": {
        "become nobody": "EPERM",
        "give a file away": "EPERM",
        "write in /sys": "EROFS",
        "write in /proc": "EROFS",
        "open /proc/sys/kernel/hostname for writing": "EROFS",
        "open /proc/sysrq-trigger for writing": "EROFS",
        "open /sys/power/state for writing": "EROFS",
    },
    "user": {
        "become nobody": "EINVAL",  # its user namespace has no other user
        "give a file away": "EINVAL",
        "write in /sys": "EACCES",
        "write in /proc": "EACCES",
        "open /proc/sys/kernel/hostname for writing": "EACCES",
        "open /proc/sysrq-trigger for writing": "EACCES",
        "open /sys/power/state for writing": "EACCES",
    },
}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory with a store, a home, volumes and files that a task may try to misuse."""
    path = Path("/tmp", f"udi-sandbox-{os.getpid()}")
    for name in ("home", "work", "volume", "readonly"):
        (path / name).mkdir(parents=True)
    yield path
    user.clean_up(path)


@pytest.fixture(scope="module")
def environ(place: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("UDI_", "XDG_", "SLURM_", "TMPDIR"))}
    named = {key: os.environ[key] for key in ("UDI_SITE_CONFIG", "UDI_CONFIG")}
    return {
        **kept,
        **named,
        "HOME": str(place / "home"),
        "UDI_STORE": str(place / "store"),
        "UDI_NODE_DIR": str(place / "node"),
    }


@pytest.fixture(scope="module", params=["become", "spawn"])
def probed(
    request: pytest.FixtureRequest, base_image: str, place: Path, environ: Mapping[str, str]
) -> tuple[dict[str, Any], int]:
    """What the program found, and the id of the process that started it (which is the task, if it became it)."""
    closed, suid = place / "work/closed", place / "volume/id"
    if os.getuid() == 0:
        closed.write_text("secret")
        closed.chmod(0o600)
        os.chown(closed, pwd.getpwnam(user.ACCOUNT).pw_uid, -1)  # root reads it by a capability only
    else:
        closed = Path("/proc/1/environ")
    shutil.copy("/usr/bin/id", suid)
    suid.chmod(0o6755)
    volumes = (f"{place}/volume:/volume", f"{place}/readonly:/readonly:ro")
    command = ["python3", "-c", PROBE, str(place / "home"), str(place / "work"), "/volume", "/readonly", str(closed)]
    command.append("/volume/id")
    udi = [sys.executable, "-m", "udi_core", "run", *(f"-V{each}" for each in volumes), base_image, "--"]
    helper = [sys.executable, "-c", SPAWN, base_image, *volumes, "--"]
    argv = [*(udi if request.param == "become" else helper), *command]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environ, cwd=place / "work"
    )
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    found: dict[str, Any] = json.loads(output)
    return found, process.pid


def test_what_a_task_may_write_and_do(probed: tuple[dict[str, Any], int]) -> None:
    kernel = KERNEL["user" if os.getuid() else "root"]
    expected = {**READ_ONLY, **WRITABLE, **FORBIDDEN, **kernel, "write to /dev/null": "done"}
    found = {name: probed[0][name] for name in expected}
    for name in kernel:  # a kernel may be built without it, a machine may itself see it read-only
        if "/" in name and found[name] in ("ENOENT", "EROFS"):
            expected[name] = found[name]
    assert found == expected


def test_what_a_task_is(probed: tuple[dict[str, Any], int]) -> None:
    found, starter = probed
    uid, gid = os.getuid(), os.getgid()
    expected = {
        "capabilities": ["0000000000000000"],
        "no new privileges": "1",
        "ids": [[uid] * 3, [gid] * 3],
        "set-user-id program runs as": [uid, uid],
        "name": pwd.getpwuid(uid).pw_name,
        "group has a name": True,
        "home": True,
        "cwd": True,
        "pid": True,
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "umask": _umask(),
        "limit": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "host name": os.uname().nodename,
        "resolv.conf": Path("/etc/resolv.conf").read_text() if Path("/etc/resolv.conf").exists() else "",
    }
    assert {name: found[name] for name in expected} == expected
    pid, session, group = found["process"]
    assert (session, group) == (os.getsid(0), os.getpgid(0))
    if found["parent"] == os.getpid():
        assert pid == starter, "who became the task kept its process id"


def test_what_a_task_sees(probed: tuple[dict[str, Any], int]) -> None:
    found, _ = probed
    assert found["the image"] == ["ro"]
    assert found["mounts without nosuid"] == []
    assert found["mounts with devices"] == ["dev"]
    assert found["block devices"] == []
    assert found["old root"] == []
    assert found["open files"] <= 6, "the three streams, the lease, and the directory that is being read"


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


SAME = {
    "volumes anywhere": (
        ["/a b:/v1", r"/c\:d:/v2/q", "/file:/etc/hosts:ro", "/file:/etc/new/f", "/file:/lib/zz", "/new\nline:/v3"],
        "cat /etc/hosts /etc/new/f /usr/lib/zz; ls -d /v1 /v2/q /v3",
        {},
        (0, "text\ntext\ntext\n/v1\n/v2/q\n/v3\n"),
    ),
    "a volume in another": (["/:/m", "/a b:/m/c\\:d:ro"], "touch /m/x && touch /m/c:d/x", {}, (1, "")),
    "a script, and one without an interpreter": ([], "./script; ./bare", {}, (0, "script\nbare\n")),
    "a home that is not there": (
        [],
        "echo $HOME; test -d $HOME || pwd",
        {"HOME": "/nowhere"},
        (0, "/nowhere\n$PLACE\n"),
    ),
    "its exit status": ([], "exit 200", {}, (200, "")),
    "a target that cannot be": (["/file:/usr"], "true", {}, (125, "")),
}


def test_both_ways_in_agree(base_image: str, place: Path, environ: Mapping[str, str]) -> None:
    there = place / "odd"
    for name in ("a b", "c:d", "new\nline"):
        (there / name).mkdir(parents=True)
    (there / "file").write_text("text\n")
    for name, text in (("script", "#!/bin/sh\necho script\n"), ("bare", "echo bare\n")):
        (there / name).write_text(text)
        (there / name).chmod(0o755)
    for what, (volumes, script, more, expected) in SAME.items():
        sources = [f"{there}{each}" for each in volumes]
        udi = [sys.executable, "-m", "udi_core", "run", *(f"-V{each}" for each in sources), base_image, "--"]
        helper = [sys.executable, "-c", SPAWN, base_image, *sources]
        for start in (udi, [*helper, "--"]):
            done = subprocess.run(
                [*start, "sh", "-c", script],
                env={**environ, **more},
                cwd=there,
                capture_output=True,
                text=True,
                timeout=200,
            )
            wanted = expected[0], expected[1].replace("$PLACE", str(there))
            assert (done.returncode, done.stdout) == wanted, (what, start[:3], done.stderr)


def test_a_signal_to_the_command_is_the_task_s(base_image: str, environ: Mapping[str, str]) -> None:
    script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    command = [sys.executable, "-m", "udi_core", "run", base_image, "--", "sh", "-c", script]
    with subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as task:
        assert task.stdout is not None and task.stdout.readline() == "ready\n"
        task.terminate()
        assert task.wait(timeout=200) == 3
        assert task.stdout.read() == "got\n"


@pytest.mark.parametrize("way", ["become", "spawn"])
def test_a_terminal_is_one_inside(way: str, base_image: str, environ: Mapping[str, str]) -> None:
    start = [sys.executable, "-m", "udi_core", "run", base_image] if way == "become" else [sys.executable, "-c", SPAWN]
    command = [*start, *([base_image] if way == "spawn" else []), "--", "sh", "-c", "tty && stty rows 7 && stty size"]
    ours, theirs = os.openpty()
    done = subprocess.run(command, env=environ, stdin=theirs, stdout=theirs, timeout=200)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while chunk := os.read(ours, 4096):
            said += chunk
    os.close(ours)
    assert done.returncode == 0, said
    name, rows, _ = said.decode().split()
    assert name.startswith("/dev/") and rows == "7"


def test_more_mounts_than_open_files(tiny_image: str, place: Path, environ: Mapping[str, str]) -> None:
    """A mount point in a directory with many entries needs a mount for each of them."""
    tree, udi = place / "wide", [sys.executable, "-m", "udi_core", "run"]
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", *(f"opt/d{number}" for number in range(300))):
        (tree / name).mkdir(parents=True)
    shell = subprocess.run([*udi, tiny_image, "--", "cat", "/bin/sh"], env=environ, capture_output=True, timeout=200)
    (tree / "bin/sh").write_bytes(shell.stdout)
    (tree / "bin/sh").chmod(0o755)
    task = [*udi, "-V", f"{place}/volume:/opt/new", f"dir:{tree}", "--", "/bin/sh", "-c", "ulimit -n; echo /opt/*"]
    limited = ["bash", "-c", 'ulimit -Sn 280; exec "$@"', "bash", *task]
    done = subprocess.run(limited, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    limit, *names = done.stdout.split()
    assert limit == "280" and len(names) == 301 and "/opt/new" in names


@pytest.mark.root
@pytest.mark.needs("setpriv", "unsquashfs")
def test_root_without_privileges(base_image: str, place: Path, environ: Mapping[str, str]) -> None:
    """Root of a container has no CAP_SYS_ADMIN, and can still run tasks where it may have a user namespace."""
    env = {**environ, "UDI_NODE_DIR": f"{place}/contained", "UDI_BACKENDS": "extract"}
    contained = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--"]
    udi = [sys.executable, "-m", "udi_core"]
    for start in ([*udi, "run", base_image, "--"], [sys.executable, "-c", SPAWN, base_image, "--"]):
        probe = ["sh", "-c", "id -u; grep CapEff /proc/self/status; touch /usr/x 2>&1; touch /tmp/$$ && rm /tmp/$$"]
        done = subprocess.run([*contained, *start, *probe], env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == "0" and "CapEff:\t0000000000000000" in done.stdout
        assert "Read-only" in done.stdout
    subprocess.run([*udi, "node", "clean"], env=env, check=True, stdout=subprocess.DEVNULL)


def test_64_commands_at_once_in_a_fresh_image(
    base_image: str, place: Path, environ: Mapping[str, str], tmp_path: Path
) -> None:
    """All want to mount it, one does, and all run; test_store_processes.py has as many pull."""
    env = {**environ, "UDI_NODE_DIR": f"{place}/crowd"}
    udi = [sys.executable, "-m", "udi_core"]
    subprocess.run([*udi, "pull", "--quiet", base_image], env=env, check=True, stdout=subprocess.DEVNULL)
    crowd = [
        subprocess.Popen(
            [*udi, "run", base_image, "--", "sh", "-c", f"echo {number}"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(64)
    ]
    answers = [process.communicate(timeout=250) for process in crowd]
    assert [output for output, _ in answers] == [f"{number}\n" for number in range(64)], answers
    assert {process.returncode for process in crowd} == {0}
    (state,) = json.loads(subprocess.check_output([*udi, "node", "status", "--json"], env=env))
    if state["backend"] in ("kernel", "fuse"):
        assert user.mounts_below(place / "crowd") == [state["root"]]
    subprocess.run([*udi, "node", "clean"], env=env, check=True, stdout=subprocess.DEVNULL)
    assert not (place / "crowd").exists()
