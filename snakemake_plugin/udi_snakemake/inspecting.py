"""``inspect``: labels, environment and entrypoint of an image, in the forms of the real program."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from udi_core import NodeMounts, StoredImage
from udi_snakemake.arguments import Inspect
from udi_snakemake.resolving import resolve

_DIRECTORY = "/.singularity.d"
#: More than any label or script needs; the file is the image's, and not to be trusted.
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What ``inspect`` shows.  ``environment`` are scripts by their path in the image."""

    labels: dict[str, str]
    environment: dict[str, str]
    runscript: str


def inspect(request: Inspect) -> None:
    """Print what was asked for; pulls the image if it is not there yet."""
    resolved = resolve(request.image, os.getcwd())
    metadata = of_config(resolved.image)
    if resolved.image.reference.startswith("file:"):
        # A SIF file keeps these in its image, as files.
        with NodeMounts(resolved.config).mount(resolved.image) as mounted:
            metadata = of_files(mounted.view, metadata)
    if request.json:
        print(json.dumps(document(resolved.image, metadata, request.parts), indent=1))
    else:
        sys.stdout.write(text(metadata, request.parts))


def document(image: StoredImage, metadata: Metadata, parts: tuple[str, ...]) -> dict[str, Any]:
    """``inspect --json``: the real program's layout, with UDI's digests beside it."""
    return {
        "data": {"attributes": {part: getattr(metadata, part) for part in parts}},
        "type": "container",
        "udi": {"digest": image.digest, "reference": image.reference, "squashfs": image.squashfs},
    }


def text(metadata: Metadata, parts: tuple[str, ...]) -> str:
    """``inspect`` for a person, ``NAME: VALUE`` lines."""
    lines: list[str] = []
    if "labels" in parts:
        lines += [f"{name}: {value}" for name, value in sorted(metadata.labels.items())]
    if "environment" in parts:
        lines += "".join(metadata.environment.values()).splitlines()
    if "runscript" in parts:
        lines += metadata.runscript.splitlines()
    return "\n".join(lines) + "\n"


def of_config(image: StoredImage) -> Metadata:
    """What an image's configuration says, and the labels under which UDI says what it is."""
    labels = {
        **image.config.labels,
        "udi.reference": image.reference,
        "udi.digest": image.digest,
        "udi.squashfs.sha256": image.squashfs_sha256,
        "udi.created": image.created,
    }
    script = f"{_DIRECTORY}/env/10-docker2singularity.sh"
    return Metadata(labels=labels, environment={script: _exports(image)}, runscript=_runscript(image))


def of_files(root: str, otherwise: Metadata) -> Metadata:
    """What the files below ``/.singularity.d`` of a mounted image say; ``otherwise``, where there are none."""
    top = root.rstrip("/") + _DIRECTORY
    if os.path.islink(top) or not os.path.isdir(top):
        return otherwise
    try:
        labels = json.loads(_read(f"{top}/labels.json") or "{}")
    except ValueError:
        labels = {}
    if not isinstance(labels, dict):
        labels = {}
    names = [] if os.path.islink(f"{top}/env") or not os.path.isdir(f"{top}/env") else sorted(os.listdir(f"{top}/env"))
    scripts = {f"{_DIRECTORY}/env/{name}": _read(f"{top}/env/{name}") for name in names if name.endswith(".sh")}
    return Metadata(
        labels={**{str(name): str(value) for name, value in labels.items()}, **otherwise.labels},
        environment=scripts,
        runscript=_read(f"{top}/runscript"),
    )


def _read(path: str) -> str:
    """A file of an image; nothing where it is a link, which could lead to the host's files, or no file."""
    if os.path.islink(path) or not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_BYTES)


def _exports(image: StoredImage) -> str:
    import shlex

    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in image.config.env.items())


def _runscript(image: StoredImage) -> str:
    import shlex

    command = shlex.join(image.config.entrypoint)
    rest = shlex.join(image.config.cmd)
    return f'#!/bin/sh\n[ $# -gt 0 ] || set -- {rest}\nexec {command} "$@"\n'
