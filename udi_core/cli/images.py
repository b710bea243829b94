"""Commands on the images of the store."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import asdict
from typing import Any

from udi_core.cli import printable
from udi_core.cli.show import json_document, lazy_progress, size, table
from udi_core.config import load_config
from udi_core.errors import ImageAbsent
from udi_core.image_config import Platform
from udi_core.platforms import parse_platform
from udi_core.queued import review
from udi_core.reference import ImageReference
from udi_core.store import ImageStore, StoredImage
from udi_core.store import verify as verify_image


def _store() -> ImageStore:
    return ImageStore(load_config().store)


def _lookup(arguments: argparse.Namespace) -> StoredImage:
    config = load_config()
    platform = getattr(arguments, "platform", None) or config.platform
    wanted = parse_platform(platform) if platform else None
    return ImageStore(config.store).lookup(ImageReference.parse(arguments.reference), wanted)


def describe(image: StoredImage) -> dict[str, Any]:
    """An image as JSON."""
    return {"id": image.digest.partition(":")[2], **asdict(image)}


def pull(arguments: argparse.Namespace) -> int:
    """``udi pull``"""
    from udi_core.pulling import pull as pull_image

    config = load_config()
    reference, store = ImageReference.parse(arguments.reference), ImageStore(config.store)
    platforms: list[Platform | None] = [parse_platform(each) for each in arguments.platform]
    pulled: dict[str, StoredImage] = {}
    with lazy_progress(quiet=arguments.quiet or arguments.json) as progress:
        for platform in platforms or [None]:
            image = pull_image(reference, store, config, platform=platform, force=arguments.force, progress=progress)
            pulled[image.digest] = image
    found = list(pulled.values())
    if arguments.json:
        documents = [describe(image) for image in found]
        json_document(documents if len(platforms) > 1 else documents[0])
        return 0
    for image in found:
        if arguments.quiet:
            print(image.digest.partition(":")[2])
            continue
        for note in image.notes:
            print(f"udi: {printable(note)}", file=sys.stderr)
        built = f"  {image.config.platform}" if len(platforms) > 1 else ""
        print(f"{printable(reference.short)}  {image.digest}  {size(image.size)}{built}")
    return 0


def images(arguments: argparse.Namespace) -> int:
    """``udi images``"""
    store = _store()
    names: dict[str, list[str]] = {}
    for tag in store.tags():
        for digest in dict.fromkeys(tag.images.values()):
            names.setdefault(digest, []).append(ImageReference.parse(tag.reference).short)
    found = sorted(store.images(), key=lambda image: image.created, reverse=True)
    if arguments.json:
        json_document([{**describe(image), "tags": names.get(image.digest, [])} for image in found])
    elif arguments.quiet:
        for image in found:
            print(image.digest.partition(":")[2])
    else:
        rows = [
            [image.digest[7:19], size(image.size), image.created[:10], str(image.config.platform), name]
            for image in found
            for name in names.get(image.digest, ["-"])
        ]
        table(["IMAGE ID", "SIZE", "PULLED", "PLATFORM", "REFERENCE"], rows)
    return 0


def lookup(arguments: argparse.Namespace) -> int:
    """``udi lookup``: exit code 1 and no output if the image is not there, as a shell script wants it."""
    try:
        print(_lookup(arguments).digest.partition(":")[2])
    except ImageAbsent:
        return 1
    return 0


def path(arguments: argparse.Namespace) -> int:
    """``udi path``"""
    print(_lookup(arguments).squashfs)
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """``udi inspect``"""
    image = _lookup(arguments)
    if arguments.json:
        json_document(describe(image))
        return 0
    config = image.config
    python = f"{image.python.path} ({image.python.version})" if image.python else "none"
    lines = [
        ("image id", image.digest.partition(":")[2]),
        ("pulled as", image.reference),
        ("pulled at", image.created),
        ("platform", str(config.platform)),
        ("squashfs", f"{image.squashfs} ({size(image.size)})"),
        ("squashfs sha256", image.squashfs_sha256),
        ("python", python),
        ("shell", image.shell or "none"),
        *(("note", note) for note in image.notes),
        ("entrypoint", " ".join(config.entrypoint) or "none"),
        ("command", " ".join(config.cmd) or "none"),
        ("workdir", config.workdir or "/"),
        *(("env", f"{key}={value}") for key, value in config.env.items()),
        *(("label", f"{key}={value}") for key, value in config.labels.items()),
    ]
    for key, value in lines:
        print(f"{key + ':':17}{printable(value)}")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """``udi verify``"""
    image = _lookup(arguments)
    verify_image(image)
    print(f"{image.digest}  ok")
    return 0


def rm(arguments: argparse.Namespace) -> int:
    """``udi rm``: a tag is forgotten, and its images removed if nothing else names them; an id removes the image."""
    config = load_config()
    store = ImageStore(config.store)
    review(store)

    def remove(digest: str) -> None:
        if store.users(digest):
            # What this node keeps mounted for the next task must not be in the way.
            from udi_core.mount import NodeMounts

            NodeMounts(config, store).release(digest)
        store.remove(digest)

    for text in arguments.references:
        reference = ImageReference.parse(text)
        tag = None if reference.transport == "id" else store.tag(reference)
        if tag is None:
            digest = _digest(store, reference)
            remove(digest)
            print(f"removed {digest}")
            continue
        for digest in dict.fromkeys(tag.images.values()):
            others = [each for each in store.tags() if digest in each.images.values() and each != tag]
            if others:
                stays = ImageReference.parse(others[0].reference).short
                print(f"forgot {printable(reference.short)}; its image stays, as {printable(stays)}")
            else:
                with contextlib.suppress(ImageAbsent):  # the tag outlived its image
                    remove(digest)
                print(f"removed {printable(reference.short)}  {digest}")
        store.untag(reference)
    return 0


def _digest(store: ImageStore, reference: ImageReference) -> str:
    """Of an image that no tag names."""
    if reference.transport == "id":
        return store.expand(reference.digest or "")
    try:
        return store.lookup(reference).digest
    except ImageAbsent as error:
        raise ImageAbsent(error.brief, error.details, "See what is there: udi images") from error


def gc(arguments: argparse.Namespace) -> int:
    """``udi gc``"""
    from udi_core.mount import NodeMounts

    config = load_config()
    store = ImageStore(config.store)
    review(store)
    mounted = {state.digest for state in NodeMounts(config, store).status()}
    report = store.gc(dry_run=arguments.dry_run, busy=mounted.__contains__, grace=arguments.grace)
    if arguments.json:
        json_document({**asdict(report), "dry_run": arguments.dry_run})
        return 0
    verb = "would remove" if arguments.dry_run else "removed"
    for digest in report.images:
        print(f"{verb} image {digest}")
    for name in report.leftovers:
        print(f"{verb} left-over {name}")
    print(f"{verb} {len(report.images)} images, {len(report.leftovers)} left-overs, {size(report.freed)}")
    return 0
