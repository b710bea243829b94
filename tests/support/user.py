"""Run programs as an ordinary user, from tests that root runs.

Nothing is added to the machine: Debian's ``games`` account stands in.  It has a passwd entry (fusermount3 wants
one), no group of its own that means anything, and no process of its own.  Its home is a temporary directory.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support import tools
from udi_core import _process

ACCOUNT = "games"
TOOLS = ("setpriv",)
_CLONE = str(Path(__file__).resolve().parents[2])
_SOURCES = ("executors", "notebooks", "snakemake_plugin")
_PACKAGES = sysconfig.get_paths()["purelib"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdinaryUser:
    """An account without privileges.

    Attributes:
        uid, gid: of the account.
        home: a directory that it owns; its ``HOME``.
        prefix: argv in front of every program, () where the tests already run as this user.
        python: an interpreter that this user reaches, with the packages of the one that runs the tests.
    """

    uid: int
    gid: int
    home: Path
    prefix: tuple[str, ...]
    python: str = sys.executable

    @property
    def env(self) -> dict[str, str]:
        """The caller's environment as this user would have it after a login."""
        dropped = ("XDG_", "UDI_", "SUDO_", "DBUS_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        account = pwd.getpwuid(self.uid).pw_name
        env = {**kept, "HOME": str(self.home), "USER": account, "LOGNAME": account}
        if self.python != sys.executable:
            env["PYTHONPATH"] = os.pathsep.join([_CLONE, *(f"{_CLONE}/{each}" for each in _SOURCES), _PACKAGES])
        return env

    def argv(self, argv: Sequence[str]) -> list[str]:
        """``argv`` as root has to start it."""
        return [*self.prefix, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, both outputs captured; ``env`` is added to :attr:`env`."""
        return subprocess.run(
            self.argv(argv),
            env={**self.env, **(env or {})},
            cwd=cwd or self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
        )

    def own(self, path: Path) -> Path:
        """Give a path to this user; returns it."""
        if os.getuid() == 0:
            os.chown(path, self.uid, self.gid)
        return path

    def can_read(self, path: str | os.PathLike[str]) -> bool:
        """Whether this user reaches a file, through all of its parent directories."""
        return subprocess.run(self.argv(["test", "-r", os.fspath(path)]), check=False).returncode == 0


def _reachable_python(user: OrdinaryUser) -> str:
    """This interpreter, or the system's of the same minor version where this one lies below root's own home."""
    system = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    if user.can_read(sys.executable) or not os.path.exists(system) or not user.can_read(_PACKAGES):
        return sys.executable
    return system


@contextlib.contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """An ordinary user with a home of its own; the caller itself if it is one.

    Afterwards the home is gone, and so are the processes that the account still runs (only where root lent it).
    """
    with tempfile.TemporaryDirectory(prefix="udi-home-") as home:
        if os.getuid() != 0:
            yield OrdinaryUser(uid=os.getuid(), gid=os.getgid(), home=Path(home), prefix=())
            return
        setpriv = _process.require_tool("setpriv", reason="run programs as an ordinary user")
        account = pwd.getpwnam(ACCOUNT)
        identity = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        user = OrdinaryUser(
            uid=account.pw_uid,
            gid=account.pw_gid,
            home=Path(home),
            prefix=(setpriv, *identity, "--inh-caps=-all", "--"),
        )
        user = replace(user, python=_reachable_python(user))
        user.own(user.home)
        try:
            yield user
        finally:
            _end_processes(str(user.home))
            for mountpoint in mounts_below(home):
                _process.run(["umount", "-l", mountpoint], check=False)


@contextlib.contextmanager
def for_tests() -> Iterator[OrdinaryUser]:
    """:func:`ordinary_user` for a test, which is skipped if it reaches neither this clone nor its interpreter."""
    if os.getuid() == 0:
        tools.need(TOOLS)
    with ordinary_user() as account:
        for path in (account.python, __file__):
            if not account.can_read(path):
                pytest.skip(f"{path} lies in a directory that no ordinary user may enter; .ci/run tests a copy")
        yield account


def mounts_below(directory: str | os.PathLike[str]) -> list[str]:
    """Mount points below a directory, innermost first."""
    prefix = os.path.join(os.path.realpath(directory), "")
    with open("/proc/self/mountinfo") as table:
        points = [line.split()[4].replace("\\040", " ") for line in table]
    return sorted((point for point in points if f"{point}/".startswith(prefix)), key=len, reverse=True)


def processes_of(directory: str) -> list[int]:
    """Processes that name a directory in their command line or environment, other than this one."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        if int(pid) != os.getpid():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
                if directory.encode() in text:
                    found.append(int(pid))
    return found


def _end_processes(directory: str) -> None:
    for pid in processes_of(directory):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def clean_up(directory: str | os.PathLike[str]) -> None:
    """Take away a test's directory: end the processes that name it, unmount what is mounted below, delete it."""
    _end_processes(os.fspath(directory))
    for mountpoint in mounts_below(directory):
        undo = ["umount", "-l", mountpoint] if os.getuid() == 0 else ["fusermount3", "-uz", mountpoint]
        _process.run(undo, check=False)
    shutil.rmtree(directory, ignore_errors=True)
