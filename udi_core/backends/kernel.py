"""The kernel's own squashfs on a loop device: the fastest, for root only.

The mount belongs to no process, so it outlives a job step, and any user who may enter the directory may use it.

The kernel parses a squashfs with all its privileges, and its authors do not promise to survive a hostile one.  So
only files that nobody but a trusted user could have written are mounted this way; the others go to FUSE.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from udi_core.backends import Held, Place
from udi_core.errors import MountError, PolicyError

if TYPE_CHECKING:
    from udi_core.config import Config


def check(squashfs: str, config: Config) -> None:
    """See :class:`udi_core.backends.Backend`."""
    if os.geteuid():
        raise MountError(
            "only root can mount by loop device",
            hint="An administrator can mount images for all users: UDI_NODE_DIR=/run/udi udi node warm REF",
        )
    if not os.path.exists("/dev/loop-control"):
        raise MountError("there is no /dev/loop-control", hint="modprobe loop; in a container, pass the device on.")
    with open("/proc/filesystems") as file:
        known = "\tsquashfs\n" in file.read()
    if not known and not os.path.isdir(f"/lib/modules/{os.uname().release}"):
        raise MountError("the kernel has no squashfs", hint="Build it in, or install the module.")
    check_trusted(squashfs, config.trusted_owners)


def mount(squashfs: str, place: Place, config: Config) -> Held:
    """See :class:`udi_core.backends.Backend`."""
    from udi_core import loop
    from udi_core.squashfs import read_superblock

    read_superblock(squashfs)
    file = os.open(squashfs, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, path = loop.attach(file, os.path.realpath(squashfs))
        try:
            loop.mount_squashfs(path, place.root)
        finally:
            os.close(device)
    except OSError as error:
        raise _translate(error) from error
    finally:
        os.close(file)
    return Held(device=path)


def unmount(held: Held, place: Place) -> None:
    """See :class:`udi_core.backends.Backend`."""
    from udi_core import loop

    with contextlib.suppress(FileNotFoundError):
        try:
            # Lazily: somebody may stand in it without a lease, and the device frees itself when he leaves.
            loop.unmount(place.root, lazy=True)
        except OSError as error:
            if error.errno != errno.EINVAL:  # nothing is mounted there
                raise
        os.rmdir(place.root)


def check_trusted(path: str, owners: tuple[str, ...]) -> None:
    """Whether nobody but trusted users could have written a file, or put it there.

    ``owners`` are user names or numbers; root always counts, and ``"*"`` trusts everybody.

    Raises:
        PolicyError: names the file or directory that others may write to.
    """
    if "*" in owners:
        return
    trusted = {0, *(uid for each in owners if (uid := _uid(each)) is not None)}
    path = os.path.realpath(path)
    while True:
        status = os.stat(path)
        if status.st_uid not in trusted:
            wrong = f"{path} belongs to user {status.st_uid}"
        elif status.st_mode & 0o022 and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
            wrong = f"{path} can be written to by others (mode {stat.S_IMODE(status.st_mode):04o})"
        elif path == "/":
            return
        else:
            path = os.path.dirname(path)
            continue
        raise PolicyError(
            "the kernel mounts only files that trusted users wrote",
            wrong,
            "Name that user in trusted_owners of the configuration, or let FUSE mount the image.",
        )


def _uid(name: str) -> int | None:
    if name.isdigit():
        return int(name)
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _translate(error: OSError) -> MountError:
    text = error.strerror or str(error)
    if error.errno == errno.EPERM:
        return MountError("the kernel does not permit it", text, "This root lacks CAP_SYS_ADMIN, as in a container.")
    if error.errno in (errno.ENOENT, errno.ENXIO):
        return MountError("there are no loop devices", text, "modprobe loop; in a container, pass them on.")
    if error.errno == errno.EINVAL:
        return MountError(
            "the kernel cannot read this squashfs", text, "Its compressor may not be built in: see dmesg."
        )
    if error.errno == errno.ENODEV:
        return MountError("the kernel has no squashfs", text, "modprobe squashfs")
    return MountError("mount(2) failed", text)
