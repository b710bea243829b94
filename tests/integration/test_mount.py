"""Mounting for real: every backend, many processes at once, death, idleness, other users."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import mounter, tools, user
from udi_core.backends import NAMES
from udi_core.backends.probe import probe
from udi_core.config import Config
from udi_core.errors import ConfigError, MountError, PolicyError
from udi_core.image_config import Platform
from udi_core.mount import NodeMounts
from udi_core.policy import Policy
from udi_core.reference import ImageReference
from udi_core.store import ImageStore

MOUNTER = str(Path(mounter.__file__).resolve())
CLONE = str(Path(__file__).resolve().parents[2])
pytestmark = pytest.mark.needs("mksquashfs", "unsquashfs", "squashfuse_ll", "fusermount3", "nsenter")


@pytest.fixture(scope="module")
def squashfs() -> Iterator[str]:
    """A small squashfs that everybody may read and nobody but its owner may have written."""
    with tempfile.TemporaryDirectory(prefix="udi-squashfs-") as directory:
        os.chmod(directory, 0o755)
        tree = Path(directory, "tree")
        for name in ("bin", "etc", "closed"):
            (tree / name).mkdir(parents=True)
        (tree / "hello").write_text("hello from the image\n")
        (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (tree / "closed/secret").write_text("secret\n")
        (tree / "closed").chmod(0o700)
        path = f"{directory}/image.squashfs"
        subprocess.run(["mksquashfs", tree, path, "-comp", "zstd", "-all-root", "-quiet", "-no-progress"], check=True)
        yield path


@pytest.fixture
def directory() -> Iterator[str]:
    """A place for node directories."""
    path = tempfile.mkdtemp(prefix="udi-mount-")
    os.chmod(path, 0o1777)
    yield path
    user.clean_up(path)


def usable(backend: str) -> str:
    """Skip where a test's user cannot have a backend at all, such as loop devices."""
    if backend == "kernel" and os.geteuid():
        pytest.skip("only root has loop devices")
    if backend in ("fuse", "namespace") and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        tools.unavailable("/dev/fuse cannot be opened")
    return backend


def node(directory: str, *backends: str, idle: float = 60.0, **more: Any) -> NodeMounts:
    config = {
        "node_dir": f"{directory}/node",
        "backends": backends,
        "idle": idle,
        "shared_node_dir": f"{directory}/all",
    }
    return NodeMounts(Config(store="/nonexistent", **{**config, **more}))


def processes(directory: str) -> list[int]:
    return [pid for pid in user.processes_of(directory) if pid != os.getpid()]


def wait_until(true: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


class Mounter:
    """Starts mounter processes, as the tests' user or as another."""

    def __init__(self, squashfs: str, directory: str, account: user.OrdinaryUser | None = None) -> None:
        self.settings = {"squashfs": squashfs, "node_dir": f"{directory}/node", "shared_node_dir": f"{directory}/all"}
        self.account = account

    def start(self, *command: str, prefix: tuple[str, ...] = (), **config: Any) -> subprocess.Popen[str]:
        python = self.account.python if self.account else sys.executable
        argv = [*prefix, python, MOUNTER, json.dumps({**self.settings, **config}), *command]
        env = self.account.env if self.account else dict(os.environ)
        env = {key: value for key, value in env.items() if not key.startswith(("SLURM_", "UDI_"))}
        env["PYTHONPATH"] = f"{CLONE}:{env.get('PYTHONPATH', '')}"
        if self.account:
            argv = self.account.argv(argv)
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env, cwd="/")

    def said(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the mounter ended with {process.wait()}"
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("backend", NAMES)
def test_every_backend_shows_the_image_and_leaves_nothing(backend: str, squashfs: str, directory: str) -> None:
    mounts = node(directory, usable(backend))
    with mounts.mount(mounter.stored(squashfs)) as mounted:
        assert Path(mounted.view, "hello").read_text() == "hello from the image\n"
        assert mounted.backend == backend
        assert bool(mounted.join) == (backend == "namespace")
        assert Path(mounted.etc_dir, "passwd").exists()
        assert [state.backend for state in mounts.status()] == [backend]
        assert mounts.clean() == [], "a mount in use is not taken away"
    assert mounts.clean() == [mounted.image.digest]
    assert os.listdir(directory) == []
    assert user.mounts_below(directory) == []
    wait_until(lambda: not processes(directory), "the end of all holders and servers")


@pytest.mark.parametrize("backend", NAMES)
def test_64_processes_at_once_make_one_mount(backend: str, squashfs: str, directory: str) -> None:
    start = Mounter(squashfs, directory)
    crowd = [start.start("sleep", "600", backends=[usable(backend)]) for _ in range(64)]
    try:
        answers = [start.said(process) for process in crowd]
        assert {answer["backend"] for answer in answers} == {backend}
        assert len({answer["root"] for answer in answers}) == 1
        assert all("hello" in answer["names"] for answer in answers)
        mounts = node(directory, backend)
        assert len(mounts.status()) == 1
        if backend in ("kernel", "fuse"):
            assert len(user.mounts_below(directory)) == 1
        if backend in ("fuse", "namespace"):
            servers = [
                pid for pid in processes(directory) if Path(f"/proc/{pid}/comm").read_text() == "squashfuse_ll\n"
            ]
            assert len(servers) == 1
        assert mounts.clean() == []
    finally:
        for process in crowd:
            process.kill()  # SIGKILL: only the kernel can give the leases up
        for process in crowd:
            process.wait()
    assert len(mounts.clean()) == 1
    wait_until(lambda: not processes(directory), "the end of all processes")
    assert os.listdir(directory) == []


@pytest.mark.parametrize("backend", ["fuse", "namespace", "extract"])
def test_an_ordinary_user(backend: str, squashfs: str, directory: str, ordinary_user: user.OrdinaryUser) -> None:
    if not os.stat("/dev/fuse").st_mode & 0o006 and backend != "extract":
        tools.unavailable("/dev/fuse is closed to ordinary users (chmod 666 /dev/fuse)")
    start = Mounter(squashfs, directory, ordinary_user)
    crowd = [start.start("sleep", "600", backends=["kernel", backend], idle=0.2) for _ in range(8)]
    answers = [start.said(process) for process in crowd]
    assert {(answer.get("backend"), answer.get("details")) for answer in answers} == {(backend, None)}
    for process in crowd:
        process.kill()
        process.wait()
    if backend != "extract":
        wait_until(lambda: not processes(directory), "the holder's leaving")
        assert user.mounts_below(directory) == []


@pytest.mark.parametrize("backend", ["fuse", "namespace"])
def test_a_dead_server_is_replaced_while_others_wait(backend: str, squashfs: str, directory: str) -> None:
    mounts = node(directory, usable(backend))
    first = mounts.mount(mounter.stored(squashfs))
    server = mounts.status()[0].pid
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not mounts.status(), "the death of the mount")
    start = Mounter(squashfs, directory)
    crowd = [start.start("sleep", "600", backends=[backend]) for _ in range(8)]
    try:
        assert all("hello" in start.said(process)["names"] for process in crowd)
        (state,) = mounts.status()
        assert state.pid != server
        if backend == "fuse":
            assert len(user.mounts_below(directory)) == 1
    finally:
        first.close()
        for process in crowd:
            process.kill()
            process.wait()


@pytest.mark.parametrize("backend", ["fuse", "namespace"])
def test_an_idle_server_leaves_by_itself_but_not_before_its_time(backend: str, squashfs: str, directory: str) -> None:
    mounts = node(directory, usable(backend), idle=0.5)
    mounted = mounts.mount(mounter.stored(squashfs))
    time.sleep(1.0)
    assert mounts.status(), "it left a task that has a lease"
    closed = time.monotonic()
    mounted.close()
    wait_until(lambda: not processes(directory), "the holder's leaving")
    assert time.monotonic() - closed >= 0.5, "it left before the idle time was over"
    assert mounts.status() == []
    assert user.mounts_below(directory) == []
    with mounts.mount(mounter.stored(squashfs)) as again:
        assert Path(again.view, "hello").exists()


@pytest.mark.parametrize("backend", ["kernel", "fuse"])
def test_what_a_task_has_open_survives_the_unmount(backend: str, squashfs: str, directory: str) -> None:
    """A process may lose its lease by closing all descriptors, as daemons do."""
    mounts = node(directory, usable(backend))
    with mounts.mount(mounter.stored(squashfs)) as mounted:
        file = open(os.path.join(mounted.view, "hello"))
    assert mounts.clean()
    with file:
        assert file.read() == "hello from the image\n"


def test_the_idle_are_reaped_when_another_image_is_mounted(squashfs: str, directory: str) -> None:
    backend = "kernel" if os.geteuid() == 0 else "extract"
    mounts = node(directory, backend, idle=0.0)
    mounts.mount(mounter.stored(squashfs)).close()
    other = mounter.stored(squashfs, digest="sha256:" + "6" * 64)
    with mounts.mount(other):
        assert [state.digest for state in mounts.status()] == [other.digest]


@pytest.mark.root
def test_a_private_mount_namespace_mounts_for_itself(squashfs: str, directory: str) -> None:
    mounts = node(directory, "kernel")
    start = Mounter(squashfs, directory)
    private = ("unshare", "--mount", "--propagation", "private", "--")
    with running(start.start("sleep", "600", prefix=private, backends=["kernel"])) as process:
        there = start.said(process)
        assert "hello" in there["names"]
        with mounts.mount(mounter.stored(squashfs)) as here:
            assert here.root != there["root"], "its mount cannot be seen from here"
            assert Path(here.view, "hello").exists()
            assert len(loop_devices(squashfs)) == 1, "two loop devices would cache every block twice"
        assert mounts.clean() == [here.image.digest]
        assert "hello" in os.listdir(f"/proc/{process.pid}/root{there['root']}"), "ours to use, not ours to take away"
    wait_until(lambda: not loop_devices(squashfs), "the release of the loop device")
    mounts.clean()
    assert os.listdir(directory) == []


@pytest.mark.root
def test_a_namespace_that_sees_the_mount_uses_it(squashfs: str, directory: str) -> None:
    start = Mounter(squashfs, directory)
    with node(directory, "kernel").mount(mounter.stored(squashfs)) as here:
        private = ("unshare", "--mount", "--propagation", "private", "--")
        with running(start.start("sleep", "600", prefix=private, backends=["extract"])) as process:
            assert start.said(process)["root"] == here.root


def loop_devices(squashfs: str) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == os.path.realpath(squashfs):
                found.append(str(path))
    return found


@pytest.mark.parametrize("backend", NAMES)
def test_a_node_that_was_rebooted(backend: str, squashfs: str, directory: str) -> None:
    """After a reboot the state file is there (if /tmp is on a disk), and the mount is not; what was unpacked may be,
    and its last files be empty."""
    mounts = node(directory, usable(backend))
    mounts.mount(mounter.stored(squashfs)).close()
    (state,) = mounts.status()
    path = Path(os.path.dirname(state.root), "state.json")
    text = path.read_text().replace(state.boot_id, "0" * len(state.boot_id))
    mounts.clean()
    os.mkdir(f"{directory}/node", 0o700)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    os.mkdir(state.root)
    if backend == "extract":
        Path(state.root, "hello").write_text("")
    assert mounts.status() == []
    with mounts.mount(mounter.stored(squashfs)) as mounted:
        assert Path(mounted.view, "hello").read_text() == "hello from the image\n"


DAMAGE = (b"", b"{", b"[]", b"\xff\xfe", b'{"digest": 5}', b"null")


@pytest.mark.parametrize("backend", NAMES)
def test_a_damaged_state_file_costs_a_mount_and_no_more(backend: str, squashfs: str, directory: str) -> None:
    mounts = node(directory, usable(backend))
    for damage in (*DAMAGE, None):
        mounts.mount(mounter.stored(squashfs)).close()
        (state,) = mounts.status()
        path = Path(os.path.dirname(state.root), "state.json")
        if damage is None:
            path.write_text(path.read_text().replace(f'"{backend}"', '"../nonsense"'))
        else:
            path.write_bytes(damage)
        assert mounts.status() == []
        with mounts.mount(mounter.stored(squashfs)) as mounted:
            assert Path(mounted.view, "hello").read_text() == "hello from the image\n"
            if backend in ("kernel", "fuse"):
                assert len(user.mounts_below(directory)) == 1, "the old mount lies below the new one"
    assert mounts.clean() == [mounted.image.digest]
    assert os.listdir(directory) == [] and user.mounts_below(directory) == []
    wait_until(lambda: not processes(directory), "the end of all holders and servers")


@pytest.mark.root
def test_a_user_s_file_is_not_mounted_by_the_kernel(
    squashfs: str, directory: str, ordinary_user: user.OrdinaryUser
) -> None:
    theirs = Path(directory, "theirs.squashfs")
    theirs.write_bytes(Path(squashfs).read_bytes())
    ordinary_user.own(theirs)
    with pytest.raises(MountError) as caught:
        node(directory, "kernel").mount(mounter.stored(str(theirs)))
    assert f"{theirs} belongs to user {ordinary_user.uid}" in caught.value.details
    with node(directory, "kernel", usable("fuse")).mount(mounter.stored(str(theirs))) as mounted:
        assert mounted.backend == "fuse"
    owners = (str(ordinary_user.uid),)
    trusting = node(directory, "kernel", node_dir=f"{directory}/other", trusted_owners=owners)
    with trusting.mount(mounter.stored(str(theirs))) as mounted:
        assert mounted.backend == "kernel"


@pytest.mark.root
def test_a_damaged_squashfs_does_not_reach_the_kernel(squashfs: str, directory: str) -> None:
    damaged = Path(directory, "damaged.squashfs")
    damaged.write_bytes(Path(squashfs).read_bytes()[:200])
    with pytest.raises(MountError) as caught:
        node(directory, "kernel").mount(mounter.stored(str(damaged)))
    assert "cut off" in caught.value.details
    assert loop_devices(str(damaged)) == []


def test_the_site_s_policy_is_asked_whoever_mounts(squashfs: str, directory: str) -> None:
    image = mounter.stored(squashfs)  # as docker://test.invalid/image:1
    store = ImageStore(f"{directory}/store")
    settings = {"store": store.root, "node_dir": f"{directory}/node", "backends": ("extract",)}
    mounts = NodeMounts(Config(**settings, policy=Policy(registries=("ghcr.io",))))
    with pytest.raises(PolicyError, match=r"test\.invalid"):
        mounts.mount(image)
    assert not os.path.exists(f"{directory}/node")
    store.set_tag(ImageReference.parse("ghcr.io/lab/x"), image.digest, Platform(), image)
    mounts.mount(image).close()  # it has a name that is allowed
    mounts.clean()


def test_every_excuse_is_kept(squashfs: str, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nonsense = Path(directory, "nonsense")
    nonsense.write_bytes(b"this is no squashfs\n" * 1000)
    monkeypatch.setenv("UDI_TOOL_NSENTER", "/nonexistent")
    mounts = node(directory, *NAMES)
    with pytest.raises(MountError) as caught:
        mounts.mount(mounter.stored(str(nonsense)))
    lines = caught.value.details.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(NAMES)
    assert "nsenter is not installed" in lines[2]
    assert "squashfs" in lines[3].lower()
    assert "udi doctor" in caught.value.hint
    assert mounts.status() == []
    mounts.clean()
    assert os.listdir(directory) == ["nonsense"]


def test_no_room_to_unpack(squashfs: str, directory: str) -> None:
    if os.geteuid():
        pytest.skip("a small file system needs root")
    os.mkdir(f"{directory}/node", 0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", f"{directory}/node"], check=True)
    big = Path(directory, "big")
    big.mkdir()
    (big / "file").write_bytes(os.urandom(1 << 20))
    path = f"{directory}/big.squashfs"
    subprocess.run(["mksquashfs", big, path, "-quiet", "-no-progress"], check=True)
    with pytest.raises(MountError) as caught:
        node(directory, "extract").mount(mounter.stored(path))
    assert "No space left" in caught.value.details


def test_no_room_for_the_etc_of_tasks(squashfs: str, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("udi_core.etc_files.prepare", full)
    mounts = node(directory, "extract")
    with pytest.raises(MountError, match="No space left") as caught:
        mounts.mount(mounter.stored(squashfs))
    assert "UDI_NODE_DIR" in caught.value.hint
    assert mounts.clean() != [], "its lease was given up"


@pytest.mark.parametrize("backend", ["fuse", "namespace"])
def test_file_modes_are_enforced_on_request(
    backend: str, squashfs: str, directory: str, ordinary_user: user.OrdinaryUser
) -> None:
    if not os.stat("/dev/fuse").st_mode & 0o006:
        tools.unavailable("/dev/fuse is closed to ordinary users (chmod 666 /dev/fuse)")
    start = Mounter(squashfs, directory, ordinary_user)

    def read(strict: bool, place: str) -> int:
        settings = {"backends": [backend], "strict_modes": strict, "node_dir": f"{directory}/{place}"}
        with running(start.start("sleep", "600", **settings)) as process:
            answer = start.said(process)
            view = f"/proc/{{}}/root{answer['root']}" if backend == "namespace" else answer["root"]
            server = next(p for p in processes(directory) if Path(f"/proc/{p}/comm").read_text() == "squashfuse_ll\n")
            path = view.format(server) + "/closed/secret"
            done = ordinary_user.run(["cat", path], check=False)
            for pid in processes(directory):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not processes(directory), "the end of the server")
            return done.returncode

    assert read(False, "open") == 0
    assert read(True, "strict") == 1


@pytest.mark.root
def test_root_s_mounts_serve_every_user(squashfs: str, directory: str, ordinary_user: user.OrdinaryUser) -> None:
    os.umask(0o077)
    try:
        mounts = node(directory, "kernel", node_dir=f"{directory}/all")
        mounts.mount(mounter.stored(squashfs)).close()
    finally:
        os.umask(0o022)
    start = Mounter(squashfs, directory, ordinary_user)
    with running(start.start("sleep", "600", backends=["extract"])) as process:
        answer = start.said(process)
        assert answer["backend"] == "kernel" and answer["root"].startswith(f"{directory}/all/")
        assert mounts.clean() == [], "the user's lease counts"
    assert mounts.clean()
    with running(start.start("sleep", "600", backends=["extract"])) as process:
        assert start.said(process)["backend"] == "extract"


@pytest.mark.root
def test_a_shared_directory_that_root_did_not_make_is_not_used(
    squashfs: str, directory: str, ordinary_user: user.OrdinaryUser
) -> None:
    node(directory, "kernel", node_dir=f"{directory}/all").mount(mounter.stored(squashfs)).close()
    os.chmod(f"{directory}/all", 0o777)
    start = Mounter(squashfs, directory, ordinary_user)
    with running(start.start("sleep", "600", backends=["extract"])) as process:
        assert start.said(process)["backend"] == "extract"


@pytest.mark.root
@pytest.mark.needs("flock")
def test_a_user_who_locks_a_mount_for_all_holds_root_up_for_an_instant_only(
    squashfs: str, directory: str, ordinary_user: user.OrdinaryUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udi_core.slot._INSTANT", 0.2)
    mounts = node(directory, "kernel", node_dir=f"{directory}/all", idle=0)
    mounts.mount(mounter.stored(squashfs)).close()
    (lease,) = Path(directory).rglob("lease")
    argv = ordinary_user.argv(["flock", "--exclusive", str(lease), "sh", "-c", "echo locked; exec sleep 600"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as joker:
        assert joker.stdout and joker.stdout.readline() == b"locked\n"
        assert mounts.reap() == []
        with pytest.raises(MountError, match="Another user"):
            mounts.mount(mounter.stored(squashfs))
        os.killpg(joker.pid, signal.SIGKILL)
    wait_until(lambda: mounts.reap() != [], "the end of the mount")


@pytest.mark.root
def test_root_unpacks_nothing_for_all_users(squashfs: str, directory: str, ordinary_user: user.OrdinaryUser) -> None:
    """Unpacked by root, an image's set-user-id programs and devices would be open to everybody."""
    mounts = node(directory, "extract", node_dir=f"{directory}/all")
    with pytest.raises(MountError) as caught:
        mounts.mount(mounter.stored(squashfs))
    assert "for all users" in caught.value.details
    assert mounts.clean() == [] and os.listdir(directory) == []
    own = node(directory, "extract", node_dir=f"{directory}/all", shared_node_dir="/nonexistent")  # as it once was
    own.mount(mounter.stored(squashfs)).close()
    for path, _, names in os.walk(f"{directory}/all"):
        os.chmod(path, 0o755)
        for name in names:
            os.chmod(os.path.join(path, name), 0o644)
    with running(Mounter(squashfs, directory, ordinary_user).start("sleep", "600", backends=["extract"])) as process:
        assert Mounter(squashfs, directory).said(process)["root"].startswith(f"{directory}/node/")


@pytest.mark.root
def test_a_link_in_the_place_of_the_shared_directory_is_not_followed(squashfs: str, directory: str) -> None:
    elsewhere = Path(directory, "elsewhere")
    elsewhere.mkdir(0o700)
    Path(directory, "all").symlink_to(elsewhere)
    with pytest.raises(ConfigError):
        node(directory, "kernel", node_dir=f"{directory}/all").mount(mounter.stored(squashfs))
    assert elsewhere.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("attack", ["link", "open", "file"])
def test_a_node_directory_that_somebody_else_planted(attack: str, squashfs: str, directory: str) -> None:
    path = Path(directory, "node")
    if attack == "link":
        Path(directory, "elsewhere").mkdir(0o700)
        path.symlink_to(Path(directory, "elsewhere"))
    elif attack == "open":
        path.mkdir()
        path.chmod(0o777)
    else:
        path.write_text("")
    with pytest.raises(ConfigError) as caught:
        node(directory, "extract").mount(mounter.stored(squashfs))
    assert str(path) in caught.value.brief and "UDI_NODE_DIR" in caught.value.hint


@pytest.mark.root
def test_a_node_directory_of_another_user(squashfs: str, directory: str, ordinary_user: user.OrdinaryUser) -> None:
    path = Path(directory, "node")
    path.mkdir(0o700)
    ordinary_user.own(path)
    with pytest.raises(ConfigError) as caught:
        node(directory, "extract").mount(mounter.stored(squashfs))
    assert f"belongs to user {ordinary_user.uid}" in caught.value.details


def test_probing_tries_and_leaves_nothing(directory: str) -> None:
    config = Config(store="/nonexistent", node_dir=f"{directory}/node")
    verdicts = list(probe(config))
    assert [verdict.name for verdict in verdicts] == list(NAMES)
    assert os.geteuid() == 0 or verdicts[0].reason, "only root can mount by loop device"
    assert not verdicts[-1].reason
    assert os.listdir(f"{directory}/node") == []
    wait_until(lambda: not processes(directory), "the end of all probes")
