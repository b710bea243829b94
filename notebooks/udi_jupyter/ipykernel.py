"""ipykernel in an image: the image's own, or one that is lent to it.

What is lent is installed once for a kind of Python (``cpython-311-glibc2.36-x86_64``) into the user's cache, and
shown to the image read-only, last on ``sys.path``: what the image has itself is never hidden.
docs/decisions/0005-ipykernel-is-lent.md tells why.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

from udi_core import Progress, ProgressSink, ToolFailed, UnsupportedImage, Volume, run
from udi_jupyter.inside import Inside
from udi_jupyter.kernelspec import START

#: Where the image sees what is lent to it.
LIBRARY = "/.udi/jupyter"

_PROBE = """
import importlib.util as util, json, os, sys
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
except (OSError, ValueError):
    libc = ""
spec = util.find_spec("ipykernel")
declares = False
if spec and spec.origin:
    with open(os.path.join(os.path.dirname(spec.origin), "kernelspec.py")) as file:
        declares = "supported_encryption" in file.read()
found = {"has": spec is not None, "encrypts": declares, "tag": sys.implementation.cache_tag, "libc": libc}
found.update(machine=os.uname().machine, version="%d.%d" % sys.version_info[:2])
print(json.dumps(found))
"""
# PYTHONPATH would reach every Python that the notebook starts, and put the lent packages before the image's own.
_START = f"""
import sys
sys.path[:] = [*filter(None, sys.path), {LIBRARY!r}]
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""
_TRY = f"import sys; sys.path.append({LIBRARY!r}); import zmq, tornado, traitlets"
# pip judges markers such as 'python_version < "3.11"' by the Python that it runs on, not by the image's.
_FOR_OLDER_PYTHONS = ("exceptiongroup", "importlib_metadata", "typing_extensions")
_HINT = "Add it to the image: pip install ipykernel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of Python, as far as wheels care.

    Attributes:
        tag: ``cpython-311``.
        version: ``3.11``.
        libc: ``glibc 2.36``; "" for another C library.
    """

    tag: str
    version: str
    libc: str
    machine: str

    @property
    def name(self) -> str:
        """A directory's name: ``cpython-311-glibc2.36-x86_64``."""
        return f"{self.tag}-{self.libc.replace(' ', '')}-{self.machine}"

    def platforms(self) -> Iterable[str]:
        """The wheel platforms that it can load, best first (PEP 600, and the older names that it lists)."""
        newest = int(self.libc.rpartition(".")[2])
        legacy = {17: "2014", 12: "2010", 5: "1"}
        for minor in range(newest, 4, -1):
            yield f"manylinux_2_{minor}_{self.machine}"
            if minor in legacy:
                yield f"manylinux{legacy[minor]}_{self.machine}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipykernel:
    """The ipykernel that an image will run.

    Attributes:
        start: Python's arguments that start it; the kernel's own follow.
        support: what the image must be shown for it.
        encrypts: whether it understands CurveZMQ keys in its connection file.
    """

    start: tuple[str, ...]
    support: tuple[Volume, ...] = ()
    encrypts: bool = False


def provide(inside: Inside, progress: ProgressSink, *, encrypted: bool = False) -> Ipykernel:
    """The image's ipykernel, or a lent one, downloaded at the first time.  Safe to call from many processes.

    Raises:
        UnsupportedImage: the image's Python does not run, or nothing can be lent to it; or the connection must be
            ``encrypted`` and cannot be.
    """
    found = _find(inside, progress)
    if encrypted and not found.encrypts:
        raise UnsupportedImage(
            f"The ipykernel of {inside.settings.image} cannot encrypt its connection",
            "A newer one can; this Jupyter asks for it (transport_encryption).",
            "Upgrade it in the image: pip install --upgrade ipykernel",
        )
    return found


def _find(inside: Inside, progress: ProgressSink) -> Ipykernel:
    status, output, errors = inside.run_python("-c", _PROBE)
    if status:
        raise UnsupportedImage(f"{inside.python} of {inside.settings.image} does not run", errors.strip())
    found = json.loads(output)
    has, encrypts = found.pop("has"), found.pop("encrypts")
    if has:
        return Ipykernel(start=START[1:], encrypts=encrypts)
    directory = _lent(inside, Kind(**found), progress)
    support = (Volume(source=directory, target=LIBRARY, read_only=True),)
    status, _, errors = inside.run_python("-c", _TRY, support=support)
    if status:
        raise UnsupportedImage(
            f"{inside.settings.image} has no ipykernel, and cannot run a lent one",
            errors.strip().rpartition("\n")[2],
            _HINT,
        )
    with open(os.path.join(directory, "ipykernel", "kernelspec.py")) as file:
        encrypts = "supported_encryption" in file.read()
    return Ipykernel(start=("-c", _START), support=support, encrypts=encrypts)


def lent_directory() -> str:
    """Where what is lent is kept: one directory for a kind of Python."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "udi", "jupyter")


def remove_lent() -> list[str]:
    """Delete what was lent; kernels that run with it lose it.  Returns the kinds of Python."""
    kinds = sorted(os.listdir(lent_directory())) if os.path.isdir(lent_directory()) else []
    shutil.rmtree(lent_directory(), ignore_errors=True)
    return kinds


def _lent(inside: Inside, kind: Kind, progress: ProgressSink) -> str:
    final = os.path.join(lent_directory(), kind.name)
    if os.path.isdir(final):
        return final
    image = inside.settings.image
    if not kind.libc.startswith("glibc 2.") or not kind.tag.startswith("cpython-"):
        raise UnsupportedImage(
            f"{image} has no ipykernel", f"It can be lent to CPython with glibc, not to {kind.tag} here.", _HINT
        )
    note = f"for Python {kind.version}"
    progress(Progress("download", "ipykernel", note=note))
    os.makedirs(lent_directory(), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=lent_directory(), prefix=".") as temporary:
        packages = os.path.join(temporary, "packages")
        options = ["--quiet", "--no-compile", "--disable-pip-version-check", "--only-binary=:all:", "--retries=2"]
        options += [f"--platform={each}" for each in kind.platforms()]
        options += ["--implementation=cp", f"--python-version={kind.version}", f"--target={packages}"]
        try:
            run([sys.executable, "-m", "pip", "install", *options, "ipykernel", *_FOR_OLDER_PYTHONS])
        except ToolFailed as error:
            raise UnsupportedImage(
                f"{image} has no ipykernel, and none could be fetched for Python {kind.version}", error.details, _HINT
            ) from error
        # Compiled by the image's Python: it cannot do so later in a read-only directory, and would at every start.
        writable = (Volume(source=packages, target=LIBRARY),)
        inside.run_python("-m", "compileall", "-q", LIBRARY, support=writable)
        try:
            os.rename(packages, final)
        except OSError:
            if not os.path.isdir(final):  # else another process was faster
                raise
    progress(Progress("download", "ipykernel", done=1, total=1, unit="sets", note=note))
    return final
