"""The ``/etc`` that a task sees: the image's own, with what must come from the node.

The copy is made once for a (node, image, user) and mounted as one directory, since every single mount costs a task
time, and since an image may lack a file, or have a symbolic link in its place, that a mount would need.
"""

from __future__ import annotations

import os
import stat
import zlib

from udi_core.contexts import suppress
from udi_core.errors import MountError
from udi_core.node_files import remove_tree
from udi_core.tree import DiskTree, resolve

#: Files of the node that take the place of the image's.
HOST_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/etc/localtime")
_WATCHED = ("/etc/passwd", "/etc/group", *HOST_FILES)
# What no configuration reaches: node-local directories are often in memory, and images come from anybody.
_MOST_BYTES, _MOST_ENTRIES = 256 << 20, 100_000


def key(home: str) -> str:
    """Name of the copy that fits the caller and the node as they are now; costs a few microseconds."""
    seen: list[object] = [os.geteuid(), os.getegid(), os.getgroups(), home]
    for path in _WATCHED:
        try:
            status = os.stat(path)
        except OSError:
            seen.append(None)
        else:
            seen.append((status.st_mtime_ns, status.st_size))
    return f"etc-{zlib.crc32(repr(seen).encode()):08x}"


def prepare(image_root: str, target: str, home: str) -> None:
    """Make the copy at ``target``: atomic (a rename), and harmless where another process was faster.

    Raises:
        MountError: the image's ``/etc`` is no configuration: it holds too much.
        OSError: the disk is full, or the image cannot be read.
    """
    temporary = f"{target}.{os.getpid()}"
    remove_tree(temporary)  # of a process that had this number before, and was killed
    try:
        os.mkdir(temporary, 0o755)
        _copy_tree(image_root + _inside(image_root, "/etc"), temporary)
        for path in HOST_FILES:
            _copy_host_file(path, temporary)
        _localtime(image_root, temporary)
        _rewrite(temporary, "passwd", _passwd(_lines(temporary, "passwd"), home, image_root))
        _rewrite(temporary, "group", _group(_lines(temporary, "group")))
        _rewrite(temporary, "nsswitch.conf", _nsswitch(_lines(temporary, "nsswitch.conf")))
        try:
            os.rename(temporary, target)
        except OSError:
            if not os.path.isdir(target):
                raise
    finally:
        with suppress(OSError):
            remove_tree(temporary)


def _inside(image_root: str, path: str) -> str:
    return resolve(DiskTree(image_root), path)


def _copy_tree(source: str, target: str) -> None:
    copied: list[tuple[str, os.stat_result]] = []
    waiting = [(source, target)]
    size = 0
    while waiting:
        here, there = waiting.pop()
        for entry in _entries(here):
            copy = os.path.join(there, entry.name)
            status = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), copy)
                continue
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(copy)
                waiting.append((entry.path, copy))
            elif entry.is_file(follow_symlinks=False):
                size += status.st_size
                _check_amount(len(copied), size)
                _write(copy, _read(entry.path))
            else:
                continue  # a socket, a pipe or a device
            copied.append((copy, status))
            _check_amount(len(copied), size)
    # What is in a directory first: its own mode may forbid to write there, and its time is that of the last write.
    for copy, status in reversed(copied):
        if os.geteuid() == 0:
            os.chown(copy, status.st_uid, status.st_gid)
        os.chmod(copy, stat.S_IMODE(status.st_mode) & 0o777)
        os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(directory))
    except OSError:
        return []  # no /etc, or a directory that the caller may not read: it is empty for the task too


def _check_amount(entries: int, size: int) -> None:
    if entries > _MOST_ENTRIES or size > _MOST_BYTES:
        raise MountError(
            "The image's /etc is too large to be copied",
            f"It holds more than {_MOST_ENTRIES} files or {_MOST_BYTES >> 20} MiB.",
            "Have the image built anew, with its data elsewhere.",
        )


def _copy_host_file(path: str, directory: str) -> None:
    if os.path.isfile(path):
        _write(os.path.join(directory, os.path.basename(path)), _read(path))


def _localtime(image_root: str, directory: str) -> None:
    # Programs that want the zone's name read the link, which is of use only if the image has that zone.
    zone, link = os.path.realpath("/etc/localtime"), os.path.join(directory, "localtime")
    if zone.startswith("/usr/share/zoneinfo/") and os.path.isfile(image_root + _inside(image_root, zone)):
        _clear(link)
        os.symlink(zone, link)
    _copy_host_file("/etc/timezone", directory)


def _passwd(lines: list[str], home: str, image_root: str) -> list[str]:
    import pwd

    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid)
        name, gecos, shell = user.pw_name, user.pw_gecos, user.pw_shell
    except KeyError:
        name, gecos, shell = os.environ.get("USER") or f"u{uid}", "", ""
    if not shell or not os.path.lexists(image_root + shell):
        shell = "/bin/sh"
    own = f"{name}:x:{uid}:{os.getegid()}:{gecos}:{home}:{shell}"
    return [own, *(line for line in lines if _field(line, 0) != name and _field(line, 2) != str(uid))]


def _group(lines: list[str]) -> list[str]:
    import grp
    import pwd

    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = os.environ.get("USER") or f"u{os.geteuid()}"
    own = []
    names, numbers = set(), set()
    for gid in dict.fromkeys([os.getegid(), *os.getgroups()]):
        try:
            name = grp.getgrgid(gid).gr_name
        except KeyError:
            name = f"g{gid}"
        own.append(f"{name}:x:{gid}:{user}")
        names.add(name)
        numbers.add(str(gid))
    return own + [line for line in lines if _field(line, 0) not in names and _field(line, 2) not in numbers]


def _nsswitch(lines: list[str]) -> list[str]:
    # An image's sss, ldap or systemd sources ask daemons that are not there, and some wait for them.
    own = {"passwd": "files", "group": "files", "shadow": "files", "hosts": "files dns"}
    kept = [line for line in lines if line.partition(":")[0].strip() not in own]
    return [f"{name}: {sources}" for name, sources in own.items()] + kept


def _field(line: str, number: int) -> str:
    parts = line.split(":")
    return parts[number] if number < len(parts) else ""


def _lines(directory: str, name: str) -> list[str]:
    path = os.path.join(directory, name)
    if not os.path.isfile(path) or os.path.islink(path):
        return []
    return _read(path).decode(errors="surrogateescape").splitlines()


def _rewrite(directory: str, name: str, lines: list[str]) -> None:
    path = os.path.join(directory, name)
    _write(path, ("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    os.chmod(path, 0o644)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except PermissionError:
        return b""  # /etc/shadow and its like: there, and of no use to the caller


def _write(path: str, data: bytes) -> None:
    _clear(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        file.write(data)


def _clear(path: str) -> None:
    """Make way for a file.  A link of the image is not followed: it leads into the node's file system from here."""
    if os.path.isdir(path) and not os.path.islink(path):
        remove_tree(path)
    elif os.path.lexists(path):
        os.unlink(path)
