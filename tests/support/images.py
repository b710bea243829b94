"""Real images, made from Debian packages by an ordinary user: no root, no Docker, no public registry.

``apt-get`` works on a private state directory and downloads packages of any suite; their files become layers
without ever belonging to root.  Finished images are kept under ``.cache/images`` of the clone (or
``$UDI_TEST_CACHE``), under a name that changes with the recipe and with this file.

Layers of an image, lowest first: the system, further packages (Python, R), and what package scripts would have made
(the loader's cache, compiled modules, users) with whiteouts of the documentation, as ``RUN rm -rf`` leaves behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote

from tests.support import oci
from udi_core import _process
from udi_core.errors import ToolFailed

TOOLS = ("apt-get", "dpkg-deb", "bwrap")
MIRROR = os.environ.get("UDI_TEST_DEBIAN_MIRROR", "http://deb.debian.org/debian")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MERGED = ("bin", "lib", "lib64", "sbin")
_HIDDEN = ("usr/share/doc", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man")
_SYSTEM = ("base-files", "base-passwd", "bash", "coreutils", "dash", "grep", "hostname", "libc-bin", "sed")
_APPLETS = ("sh", "cat", "echo", "env", "false", "id", "ls", "mkdir", "pwd", "sleep", "test", "touch", "true")
# What update-alternatives would have chosen, where the package is there.
_ALTERNATIVES = {
    "usr/bin/which": "which.debianutils",
    "usr/lib/x86_64-linux-gnu/libblas.so.3": "blas/libblas.so.3",
    "usr/lib/x86_64-linux-gnu/liblapack.so.3": "lapack/liblapack.so.3",
}
# Hashes in place of times: the compiled modules stay valid whatever a layer says of mtimes.
_COMPILE = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an image is made of; two equal recipes give the same image.

    Packages come with all that they depend on, those in ``alone`` come without.
    """

    suite: str
    system: tuple[str, ...] = _SYSTEM
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    merged_usr: bool = True


# r-base-core depends on pango, Tk, curl and 80 more, for graphics and downloads; scripts need these.
_R_NEEDS = ("debianutils", "libblas3", "libbz2-1.0", "libgfortran5", "libgomp1", "libicu72", "liblapack3", "liblzma5")
_R_NEEDS += ("libpcre2-8-0", "libreadline8", "libtirpc3", "zlib1g")

RECIPES = {
    "base": Recipe(suite="bookworm", packages=("python3",)),
    "numeric": Recipe(suite="bookworm", packages=("python3", "libstdc++6", "libgomp1")),
    "trixie": Recipe(suite="trixie", packages=("python3",)),
    "bullseye": Recipe(suite="bullseye", packages=("python3",)),
    "nopython": Recipe(suite="bookworm"),
    "r": Recipe(suite="bookworm", packages=_R_NEEDS, alone=("r-base-core",)),
    "tiny": Recipe(suite="bookworm", system=("busybox-static",), merged_usr=False),
}


def cache_dir() -> Path:
    """Where finished images and downloaded packages are kept."""
    chosen = os.environ.get("UDI_TEST_CACHE")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[2] / ".cache" / "images"


def image(name: str) -> oci.Layout:
    """The layout of a named image (see ``RECIPES``), built on first use.

    Safe to call from many processes at once: one builds, the others wait.  The layout is shared: read it only.

    Raises:
        ToolMissing, ToolFailed: ``apt-get``, ``dpkg-deb`` or ``bwrap`` is missing or failed.
    """
    recipe = RECIPES[name]
    text = repr(sorted(asdict(recipe).items())).encode() + Path(__file__).read_bytes()
    final = cache_dir() / f"{name}-{hashlib.sha256(text).hexdigest()[:12]}"
    if final.is_dir():
        return oci.Layout(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    with _locked(final.parent / f"{name}.lock"):
        if not final.is_dir():
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{name}-") as temporary:
                _build(name, recipe, Path(temporary))
                for stale in final.parent.glob(f"{name}-*"):
                    shutil.rmtree(stale)
                (Path(temporary) / "layout").rename(final)
    return oci.Layout(final)


def derive(base: oci.Layout, path: Path, layers: Sequence[oci.Layer], *, env: Iterable[str] = ()) -> oci.Layout:
    """A new layout at ``path``: the image of ``base`` with layers on top and ``KEY=VALUE``s after its own."""
    layout = oci.Layout(path)
    manifest = base.read(base.find())
    config = base.read(manifest["config"])
    for blob in manifest["layers"]:
        target = layout.blob_path(blob["digest"])
        if not target.exists():
            try:
                os.link(base.blob_path(blob["digest"]), target)
            except OSError:  # another file system, or protected_hardlinks
                shutil.copy(base.blob_path(blob["digest"]), target)
    more = [
        layout.add_blob(oci.compress(each.data, each.compression), oci.layer_type(each.compression)) for each in layers
    ]
    layout.add_layers(
        [*manifest["layers"], *more],
        diff_ids=[*config["rootfs"]["diff_ids"], *(oci.digest_of(each.data) for each in layers)],
        config={**config["config"], "Env": [*config["config"]["Env"], *env]},
    )
    return layout


def python_layer(*requirements: str, name: str = "base") -> oci.Layer:
    """A layer that ``pip install`` in a named image would have made, from wheels; kept in the cache.

    Modules are compiled by the image's own Python: a read-only image cannot do it later.

    Args:
        requirements: as pip takes them.
        name: image that it will lie on; says which Python.
    """
    key = hashlib.sha256(repr((sorted(requirements), RECIPES[name])).encode()).hexdigest()[:12]
    final = cache_dir() / f"packages-{key}.tar"
    if not final.exists():
        base = image(name)
        with _locked(final.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=final.parent) as temporary:
            if not final.exists():
                root, written = Path(temporary) / "root", Path(temporary) / "layer.tar"
                unpack([base.blob_path(each["digest"]) for each in base.read(base.find())["layers"]], root)
                version = os.path.basename(os.path.realpath(root / "usr/bin/python3")).removeprefix("python")
                place = f"usr/local/lib/python{version}/dist-packages"
                _install_wheels(requirements, version, root / place)
                _inside(root, "python3", *_COMPILE, f"/{place}", check=False)  # wheels hold files that are no Python
                written.write_bytes(oci.tar(_tree_entries(root / place, place)))
                written.rename(final)
    return oci.Layer(data=final.read_bytes())


def _install_wheels(requirements: Sequence[str], python: str, target: Path) -> None:
    platforms = [f"--platform=manylinux{each}_x86_64" for each in ("_2_28", "_2_17", "_2_12", "_2_5", "2014")]
    options = ["--quiet", "--no-compile", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    _process.run([sys.executable, "-m", "pip", "install", *options, *platforms, f"--target={target}", *requirements])


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(name: str, recipe: Recipe, work: Path) -> None:
    apt = _Apt(cache_dir() / "apt" / recipe.suite, recipe.suite)
    system = apt.download(recipe.system)
    more = [each for each in apt.download((*recipe.system, *recipe.packages)) if each not in system]
    if recipe.alone:
        more += apt.download(recipe.alone, dependencies=False)
    root, layout = work / "root", oci.Layout(work / "layout")
    if name == "tiny":
        layers = [oci.Layer(data=oci.tar(_tiny_entries(system)))]
    else:
        layers = [oci.Layer(data=oci.tar(_system_entries(system, recipe.merged_usr)))]
        if more:
            layers.append(oci.Layer(data=oci.tar(_package_entries(more, recipe.merged_usr))))
        for number, layer in enumerate(layers):
            (work / f"{number}.tar").write_bytes(layer.data)
        unpack([work / f"{number}.tar" for number in range(len(layers))], root)
        layers.append(oci.Layer(data=oci.tar(_finish(root))))
    layout.add_image(
        layers,
        config={
            "Env": [f"PATH={_PATH}", "LANG=C.UTF-8", f"IMAGE_NAME={name}"],
            "Cmd": ["sh"] if name == "tiny" else ["bash"],
            "Labels": {"org.opencontainers.image.title": name},
        },
    )


@dataclass(slots=True)
class _Apt:
    """``apt-get`` with all of its state in one directory of the caller's: works without root, on any Debian."""

    directory: Path
    suite: str
    updated: bool = False

    def download(self, packages: Sequence[str], *, dependencies: bool = True) -> list[Path]:
        """Package files of ``packages``, and of all that they depend on unless told otherwise, in apt's order."""
        for each in ("lists", "archives", "none"):
            (self.directory / each / "partial").mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        command = ("install", "--download-only") if dependencies else ("download",)
        with _locked(self.directory / "lock"):
            if not self.updated:
                signed = f"[signed-by={_KEYRING}] " if os.path.exists(_KEYRING) else ""
                (self.directory / "sources.list").write_text(f"deb {signed}{MIRROR} {self.suite} main\n")
                self._run("update")
                self.updated = True
            # Files that are already in the archive directory are not listed: list with an empty one.
            listed = self._run(*command, "--print-uris", *packages, archives="none")
            self._run(*command, *packages)
        names = [line.split("'")[1].rsplit("/", 1)[1] for line in listed.splitlines() if line.startswith("'")]
        files = [line.split()[1] for line in listed.splitlines() if line.startswith("'")]
        found = [self.directory / "archives" / file for file in files]
        missing = [unquote(name) for name, path in zip(names, found, strict=True) if not path.exists()]
        if missing:
            raise ToolFailed("apt-get did not download every package", ", ".join(missing))
        return found

    def _run(self, *arguments: str, archives: str = "archives") -> str:
        options = {
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false",
            # Root's downloads are made by a user of apt's own, who cannot enter a private directory.
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::Cache": str(self.directory),
            "Dir::Cache::archives": str(self.directory / archives),
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::sourcelist": str(self.directory / "sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Log": str(self.directory),
            "Dir::State": str(self.directory),
            "Dir::State::lists": str(self.directory / "lists"),
            "Dir::State::status": str(self.directory / "status"),
        }
        program = _process.require_tool("apt-get", reason="download the packages of test images")
        argv = [program, "-qq", "-y", *(f"-o{key}={value}" for key, value in options.items()), *arguments]
        # `download` puts files into the working directory.
        here = str(self.directory / archives)
        return _process.run(argv, env={**os.environ, "LC_ALL": "C"}, cwd=here).stdout.decode()


def _package_entries(packages: Iterable[Path], merged_usr: bool) -> Iterator[oci.Entry]:
    """All files of some packages; each directory once."""
    seen: set[str] = set()
    for package in packages:
        listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(listing)) as archive:
            for info in archive:
                info.name = _merged(info.name, merged_usr)
                if info.islnk():
                    info.linkname = _merged(info.linkname, merged_usr)
                if not info.name or info.name in seen:
                    continue
                seen.add(info.name)
                content = archive.extractfile(info) if info.isreg() else None
                yield oci.Entry(info=info, content=content.read() if content else b"")


def _merged(name: str, merged_usr: bool) -> str:
    """A package's path as a path of the image: ``./bin/sh`` is ``usr/bin/sh`` where /usr is merged."""
    name = name.removeprefix("./").strip("./") if name in ("./", ".") else name.removeprefix("./")
    top, slash, _ = name.partition("/")
    if merged_usr and top in _MERGED:
        return f"usr/{name}" if slash else ""
    return name


def _system_entries(packages: Sequence[Path], merged_usr: bool) -> Iterator[oci.Entry]:
    names = set()
    for entry in _package_entries(packages, merged_usr):
        names.add(entry.info.name)
        yield entry
    if merged_usr:
        yield from (oci.symlink(top, f"usr/{top}") for top in _MERGED)
    if "usr/bin/sh" not in names:  # dash diverts it in a package script
        yield oci.symlink("usr/bin/sh", "dash")
    for wanted in ("proc", "sys", "dev", "tmp", "run", "home", "root"):
        if wanted not in names:
            yield oci.directory(wanted, 0o1777 if wanted == "tmp" else 0o755)


def _tiny_entries(packages: Sequence[Path]) -> Iterator[oci.Entry]:
    for wanted in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        yield oci.directory(wanted)
    for entry in _package_entries(packages, merged_usr=False):
        if entry.info.isreg() and entry.info.name.endswith("bin/busybox"):
            yield oci.file("bin/busybox", entry.content, 0o755)
    yield from (oci.symlink(f"bin/{applet}", "busybox") for applet in _APPLETS)


def unpack(layers: Iterable[Path], root: Path) -> None:
    """Extract layer blobs over each other; whiteouts are left lying, as files."""
    for layer in layers:
        with tarfile.open(layer) as archive:
            # Set, not passed: Debian 12's Python 3.11.2 has no filters, and later ones must not refuse absolute links.
            archive.extraction_filter = staticmethod(lambda member, path: member)
            archive.extractall(root)


def _finish(root: Path) -> Iterator[oci.Entry]:
    """What package scripts would have left, made by the image's own programs; and whiteouts."""
    before = {path for path, _ in _walk(root)}
    for name, target in _ALTERNATIVES.items():
        if (root / name).parent.joinpath(target).exists():
            (root / name).symlink_to(target)
    if (root / "etc/R").is_dir():
        shutil.copy(root / "usr/lib/R/etc/Renviron.ucf", root / "etc/R/Renviron")
    _inside(root, "ldconfig")
    python = shutil.which("python3", path=str(root / "usr/bin"))
    if python:
        library = f"/usr/lib/{os.path.basename(os.path.realpath(python))}"
        _inside(root, "python3", *_COMPILE, "/usr/lib/python3", library)
    for kind in ("passwd", "group"):
        master = root / f"usr/share/base-passwd/{kind}.master"
        yield oci.file(f"etc/{kind}", master.read_bytes() if master.exists() else b"root:x:0:0:root:/root:/bin/sh\n")
    yield from (oci.whiteout(path) for path in _HIDDEN if (root / path).is_dir())
    # ldconfig's second cache holds inode numbers, and no two builds would be the same.
    made = [path for path, _ in _walk(root) if path not in before and not path.startswith("var/cache/ldconfig")]
    for path in sorted(made):
        full = root / path
        if full.is_symlink():
            yield oci.symlink(path, os.readlink(full))
        elif full.is_dir():
            yield oci.directory(path)
        elif full.is_file():
            yield oci.file(path, full.read_bytes())


def _inside(root: Path, *argv: str, check: bool = True) -> None:
    mounts = ["--bind", str(root), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    bwrap = _process.require_tool("bwrap", reason="run the image's own programs")
    env = {"PATH": _PATH, "PYTHONHASHSEED": "0"}  # sets in compiled modules are written in the order of their hashes
    _process.run([bwrap, "--unshare-user", "--uid", "0", "--gid", "0", *mounts, *argv], env=env, check=check)


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            yield os.path.relpath(path, root), os.lstat(path)


def _tree_entries(root: Path, place: str) -> Iterator[oci.Entry]:
    """A directory tree as entries below ``place``, whose parents come first."""
    parts = place.split("/")
    for depth in range(len(parts)):
        yield oci.directory("/".join(parts[: depth + 1]))
    for path, status in sorted(_walk(root)):
        if stat.S_ISLNK(status.st_mode):
            yield oci.symlink(f"{place}/{path}", os.readlink(root / path))
        elif stat.S_ISDIR(status.st_mode):
            yield oci.directory(f"{place}/{path}")
        else:
            yield oci.file(f"{place}/{path}", (root / path).read_bytes(), status.st_mode & 0o755)
