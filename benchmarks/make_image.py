"""Make the image that the benchmarks use: about 1 GB and 30,000 entries, three layers with whiteouts and replacements.

``python -m benchmarks.make_image DIRECTORY`` writes an OCI layout there (tag ``latest``) and prints its size.  A
layout that is there already is kept.  Needs root (debootstrap) and the package registries.

Layers, lowest first: Debian with Python by debootstrap; numpy, scipy, pandas, matplotlib and more by pip; an update
that replaces some files, deletes others and puts an opaque directory.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.support import oci
from udi_core import run

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "scikit-learn",
    "scikit-image",
    "statsmodels",
    "sympy",
    "networkx",
    "pyarrow",
    "jupyterlab",
    "plotly",
)
_SITE = "usr/local/lib/python3.11/dist-packages"


def make(directory: Path) -> oci.Layout:
    """The layout, made if it is not there yet.  Atomic: it appears whole."""
    if (directory / "index.json").exists():
        return oci.Layout(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        root, made = Path(scratch, "root"), Path(scratch, "layout")
        layout = oci.Layout(made)
        run(["debootstrap", "--variant=minbase", "--include=python3", SUITE, str(root), MIRROR])
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        base = _layer(layout, root)
        packages = Path(scratch, "packages")
        target = packages / _SITE
        # The image's Python is 3.11, whatever runs this program.
        wheels = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--no-compile"]
        run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), *wheels, *PACKAGES])
        python = _layer(layout, packages)
        update = Path(scratch, "update")
        _make_update(root, packages, update)
        top = _layer(layout, update)
        layers, diff_ids = zip(base, python, top, strict=True)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        layout.add_layers(layers, diff_ids=diff_ids, config={"Env": [f"PATH={path}"], "Cmd": ["bash"]})
        made.rename(directory)
    return oci.Layout(directory)


def contents(layout: oci.Layout) -> tuple[int, int]:
    """How many entries the layers have, and how many bytes of content."""
    entries = size = 0
    for layer in layout.read(layout.find("latest"))["layers"]:
        with tarfile.open(layout.blob_path(layer["digest"]), "r|gz") as archive:
            for info in archive:
                entries += 1
                size += info.size
    return entries, size


def _make_update(root: Path, packages: Path, update: Path) -> None:
    """A layer that replaces documentation, deletes some tests, and empties a directory."""
    for source in sorted((root / "usr/share/doc").iterdir())[:60]:
        copyright_ = update / "usr/share/doc" / source.name / "copyright"
        if (source / "copyright").is_file():
            copyright_.parent.mkdir(parents=True, exist_ok=True)
            copyright_.write_text("replaced\n")
    site = packages / _SITE
    for name in ("sympy", "networkx"):
        for tests in sorted(site.glob(f"{name}/*/tests"))[:10]:
            whiteout = update / tests.parent.relative_to(packages) / ".wh.tests"
            whiteout.parent.mkdir(parents=True, exist_ok=True)
            whiteout.touch()
    opaque = update / "usr/share/locale/.wh..wh..opq"
    opaque.parent.mkdir(parents=True, exist_ok=True)
    opaque.touch()


def _layer(layout: oci.Layout, root: Path) -> tuple[oci.Descriptor, str]:
    """Pack a directory as a gzip layer, as root's files; its descriptor and its diff ID."""
    temporary = layout.path / f"layer-{os.getpid()}"
    uncompressed = hashlib.sha256()

    class Hashing:
        def __init__(self, file: gzip.GzipFile) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            uncompressed.update(data)
            return self.file.write(data)

    with (
        open(temporary, "wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=Hashing(packed), mode="w|", format=tarfile.PAX_FORMAT) as archive,  # type: ignore[call-overload]
    ):
        for path in sorted(root.rglob("*")):
            if not path.is_socket():
                archive.add(path, arcname=str(path.relative_to(root)), recursive=False)
    data = temporary.read_bytes()
    temporary.unlink()
    return layout.add_blob(data, oci.layer_type("gzip")), f"sha256:{uncompressed.hexdigest()}"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    written = make(target)
    entries, size = contents(written)
    print(f"{target}: {size / 1e6:.0f} MB in {entries:,} entries")
