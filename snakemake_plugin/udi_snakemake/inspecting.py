"""``inspect``: labels, environment and entrypoint of an image, in the forms of the real program."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from udi_core import StoredImage
from udi_snakemake.arguments import Inspect
from udi_snakemake.resolving import resolve


def inspect(request: Inspect) -> None:
    """Print what was asked for; pulls the image if it is not there yet."""
    image = resolve(request.image, os.getcwd()).image
    if request.json:
        print(json.dumps(document(image, request.parts), indent=1))
    else:
        sys.stdout.write(text(image, request.parts))


def document(image: StoredImage, parts: tuple[str, ...]) -> dict[str, Any]:
    """``inspect --json``: the real program's layout, with UDI's digests beside it."""
    attributes: dict[str, Any] = {}
    if "labels" in parts:
        attributes["labels"] = labels(image)
    if "environment" in parts:
        attributes["environment"] = {"/.singularity.d/env/10-docker2singularity.sh": _exports(image)}
    if "runscript" in parts:
        attributes["runscript"] = _runscript(image)
    return {
        "data": {"attributes": attributes},
        "type": "container",
        "udi": {"digest": image.digest, "reference": image.reference, "squashfs": image.squashfs},
    }


def text(image: StoredImage, parts: tuple[str, ...]) -> str:
    """``inspect`` for a person, ``NAME: VALUE`` lines."""
    lines: list[str] = []
    if "labels" in parts:
        lines += [f"{name}: {value}" for name, value in sorted(labels(image).items())]
    if "environment" in parts:
        lines += _exports(image).splitlines()
    if "runscript" in parts:
        lines += _runscript(image).splitlines()
    return "\n".join(lines) + "\n"


def labels(image: StoredImage) -> dict[str, str]:
    """The image's own labels, and those under which UDI says what it is."""
    return {
        **image.config.labels,
        "udi.reference": image.reference,
        "udi.digest": image.digest,
        "udi.squashfs.sha256": image.squashfs_sha256,
        "udi.created": image.created,
    }


def _exports(image: StoredImage) -> str:
    import shlex

    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in image.config.env.items())


def _runscript(image: StoredImage) -> str:
    import shlex

    command = shlex.join(image.config.entrypoint)
    rest = shlex.join(image.config.cmd)
    return f'#!/bin/sh\n[ $# -gt 0 ] || set -- {rest}\nexec {command} "$@"\n'
