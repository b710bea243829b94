"""Warm starts: a launch that was worked out is written down as shell code, and the front repeats it without Python.

Snakemake starts hundreds of jobs whose command lines differ only in the text behind ``bash -c``.  A launch is a pure
function of the other words, the directory, the environment and some files.  So the front (``bin/apptainer``) asks:
were the same words said in the same directory and environment, are the files as they were, does the mount still live?
Then it takes the mount's lease, sets the variables that differ, and executes the same argv with another last word.

Tested with dash and bash.  Whatever is in doubt makes the code return, and the front starts Python as if it were new.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from udi_core import UdiError, find_program, run, task_directory

#: Seconds that a launch is repeated.  What is not looked at again (the node's /etc/passwd) may be this old.
LIFETIME = 300
#: Jobs whose environment is all their own (a Slurm job's id) leave launches that nobody will ask for again.
_MOST = 64
_ASKED, _IMAGE = "UDI_FRONT_ASKED", "UDI_FRONT_IMAGE"
_LONGEST_LINE = 4096
#: Seconds after which a file's time tells whether it was written again, wherever clocks count whole seconds.
_SETTLED = 2
#: A mount may have two leases: that of whoever made it, and the user's own.
_DESCRIPTORS = (9, 8)
#: Descriptor in which bubblewrap notes how the task ends; a shell opens none beyond 9.
NOTES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the front was asked, as it tells it itself: ``asked`` all but the last word, ``image`` the image's name."""

    asked: str
    image: str


def take_question(environ: MutableMapping[str, str] = os.environ) -> Question | None:
    """What the front left in the environment, which afterwards is the caller's own again."""
    asked, image = environ.pop(_ASKED, ""), environ.pop(_IMAGE, "")
    return Question(asked=asked, image=image) if asked else None


def remember(
    question: Question,
    *,
    argv: Sequence[str],
    env: Mapping[str, str],
    leases: Iterable[int],
    root: str,
    record: tuple[str, str],
    inputs: Iterable[str],
    environ: Mapping[str, str],
) -> None:
    """Write a launch down for the front.  Atomic; one that cannot be repeated safely is left out, without a word.

    Args:
        argv: of the launch, without the word that changes; with a record, it notes the end in :data:`NOTES`.
        leases: descriptors that the launch inherits.
        root: a path at which the mounted image can be looked at.
        record: the launch's file of the run record and its beginning of a line.
        inputs: files that the launch was made of, whether they exist or not.
        environ: what the front's shell exports.
    """
    flock = find_program("flock")
    names = {*env, *environ}
    if flock is None or not all(name.isidentifier() and name.isascii() for name in names):
        return
    try:
        with open("/proc/uptime") as file:
            now = int(file.read().partition(".")[0])
        unchanged, newest = _unchanged(inputs)
        lines = [
            f'[ "$asked" = {_quote(question.asked)} ] || return 0',
            "read -r now rest </proc/uptime && now=${now%.*}",
            f'[ "$now" -ge {now} ] && [ "$now" -lt {now + LIFETIME} ] || return 0',
            *unchanged,
            # Its entries, because the kernel may still know the directory of a FUSE server that is dead.
            f"for entry in {_quote(root)}/*; do break; done",
            f'[ "$entry" != {_quote(root + "/*")} ] || return 0',
            *_take_leases(flock, [os.readlink(f"/proc/self/fd/{fd}") for fd in leases]),
            *_record(*record),
            *_set(env, environ),
            f'exec {_words(argv)} "$last"',
        ]
        _publish(question, "\n".join(lines) + "\n", newest)
    except (OSError, ValueError, UdiError):
        return


def _unchanged(inputs: Iterable[str]) -> tuple[list[str], float]:
    """Conditions under which the inputs are what they are now, and the time that the file with the code must have.

    Raises:
        ValueError: an input is so new that a change within the same second could go unseen.
    """
    lines, listed, newest = [], [], 0.0
    for path in inputs:
        try:
            status = os.stat(path)
        except OSError:
            lines.append(f"[ ! -e {_quote(path)} ] || return 0")
            continue
        line = _only_line(path, status.st_size)
        if line is not None:
            lines.append(
                f'{{ IFS= read -r line <{_quote(path)}; }} 2>/dev/null && [ "$line" = {_quote(line)} ] || return 0'
            )
            continue
        if time.time() - status.st_mtime < _SETTLED:
            raise ValueError(f"{path} is new")
        newest = max(newest, status.st_mtime)
        lines.append(f'[ ! {_quote(path)} -nt "$file" ] || return 0')
        listed.append(path)
    if listed:
        # A file that an older one was moved over is not newer; it has another inode.
        command = ["ls", "-Lind", "--", *listed]
        seen = run(command).stdout.decode(errors="surrogateescape").rstrip("\n")
        lines.append(f'[ "$({_words(command)} 2>/dev/null)" = {_quote(seen)} ] || return 0')
    return lines, newest


def _only_line(path: str, size: int) -> str | None:
    """The text of a file of one line, as a pointer file is; None if it is something else."""
    if size > _LONGEST_LINE:
        return None
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        text = file.read()
    return text[:-1] if text.find("\n") == len(text) - 1 >= 0 and "\0" not in text else None


def _take_leases(flock: str, paths: Sequence[str]) -> Iterator[str]:
    """What :mod:`udi_core.mount` does to use a mount: a shared lock on its lease, which outlives exec."""
    if len(paths) > len(_DESCRIPTORS):
        raise ValueError(f"{len(paths)} leases")
    for fd, path in zip(_DESCRIPTORS, paths, strict=False):
        lease, opened = _quote(path), f"/proc/self/fd/{fd}"
        # One that the caller opened is the caller's.
        yield f"[ ! -e {opened} ] && {{ command exec {fd}<{lease}; }} 2>/dev/null || return 0"
        # Taken away between open and lock?
        yield f"{_quote(flock)} -s -n {fd} && [ {opened} -ef {lease} ] || {{ exec {fd}<&-; return 0; }}"
        # Used now: writing nothing sets the time.
        yield f"[ ! -w {lease} ] || true >{lease}"


def _set(env: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[str]:
    gone = sorted(environ.keys() - env.keys())
    if gone:
        yield f"unset {' '.join(gone)}"
    for name, value in sorted(env.items()):
        if environ.get(name) != value:
            yield f"export {name}={_quote(value)}"


def _record(file: str, beginning: str) -> Iterator[str]:
    """A file for the task, whose own times tell when it began and ended: a shell has no clock that costs nothing."""
    if file:
        opened = f"/proc/self/fd/{NOTES}"
        place = f"{_quote(task_directory(file))}/$$-$now"
        yield f"[ ! -e {opened} ] && {{ command exec {NOTES}>{place}; }} 2>/dev/null || return 0"
        yield f"printf '%s}}\\n' {_quote(beginning)} 2>/dev/null >&{NOTES} || :"


def _publish(question: Question, code: str, newest: float) -> None:
    directory = _directory()
    _forget(directory)
    path = f"{directory}/{question.image}.{zlib.crc32(question.asked.encode(errors='surrogateescape')):08x}"
    temporary = f"{directory}/.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(code)
    os.utime(temporary, (newest, newest))
    os.rename(temporary, path)


def _directory() -> str:
    """The directory in which the front looks; nobody else can write to it."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    # Not the node directory of the configuration, which it takes the configuration to know.
    base = base if os.path.isdir(base) else "/tmp"  # noqa: S108 - owner and mode are checked below
    directory = os.path.join(base, f"udi-front-{os.geteuid()}")
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        status = os.lstat(directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o170077 != 0o040000:
            raise OSError(f"{directory} is not ours alone") from None
    return directory


def _forget(directory: str) -> None:
    """Empty what is no longer repeated, and the oldest where there are many; delete what has long been empty.

    A shell ends if a file is gone that it has just seen and wants to read.  It reads none that it has seen empty.
    """
    found = []
    oldest = time.time() - LIFETIME
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError):  # another process deletes too
            status = os.lstat(path)
            if status.st_size:
                found.append((status.st_ctime, path))
            elif status.st_ctime < oldest:
                os.unlink(path)
    found.sort(reverse=True)
    for number, (changed, path) in enumerate(found):
        if changed < oldest or number >= _MOST:
            with contextlib.suppress(OSError):
                _empty(path)


def _empty(path: str) -> None:
    # Another file in its place: a shell may be in the middle of this one.
    temporary = f"{os.path.dirname(path)}/.{os.getpid()}"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.rename(temporary, path)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _words(argv: Iterable[str]) -> str:
    return " ".join(map(_quote, argv))
