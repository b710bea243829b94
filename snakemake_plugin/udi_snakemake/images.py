"""What the word IMAGE on the front's command line means: a pointer file, a local image, or a reference."""

from __future__ import annotations

import os

from udi_core import ImageNotFound, ImageReference, InvalidReference, UnsupportedImage
from udi_snakemake import pointer
from udi_snakemake.pointer import Pointer

#: Schemes of the real program that UDI does not speak, and what to write instead.
_ELSEWHERE = {
    "library": "Push the image to an OCI registry, and write docker://REGISTRY/REPOSITORY:TAG.",
    "shub": "Singularity Hub is gone. Push the image to an OCI registry, and write docker://REGISTRY/REPOSITORY:TAG.",
    "oras": "Fetch the SIF file once (oras pull), and name the file.",
    "http": "Download the file once, and name it.",
    "https": "Download the file once, and name it.",
    "ipfs": "Download the file once, and name it.",
    "docker-daemon": "Save it (docker save -o FILE IMAGE), and write docker-archive:FILE.",
    "podman": "Save it (podman save -o FILE IMAGE), and write docker-archive:FILE.",
    "oci-archive": "Unpack it (tar -xf FILE -C DIR), and write oci:DIR.",
    "instance": "There are no instances: entering an image takes milliseconds.",
}
_SQUASHFS_MAGIC = b"hsqs"
_SIF_MAGIC = (32, b"SIF_MAGIC")


def understand(text: str, cwd: str) -> Pointer | ImageReference:
    """What an IMAGE names.  Opens local files to tell their kind; no network, no store.

    Raises:
        InvalidReference: malformed, or of a scheme that only the real program speaks; says what to write instead.
        ImageNotFound: a path where nothing is.
        UnsupportedImage: a file that is neither a pointer, a squashfs nor a SIF image.
        CorruptImage: a damaged pointer file.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _ELSEWHERE and (rest.startswith("//") or scheme in ("oci-archive", "docker-daemon")):
        raise InvalidReference(f"{text!r}: UDI does not know {scheme}:", "", _ELSEWHERE[scheme])
    path = os.path.join(cwd, text)
    if "://" in text or not os.path.exists(path):
        if "://" not in text and (text.startswith(("/", "./", "../")) or text.endswith((".sif", ".simg", ".squashfs"))):
            raise ImageNotFound(f"There is no image at {path}", "", "Pull it again, or check the path.")
        return ImageReference.parse(text, cwd=cwd)
    found = pointer.read(path)
    if found is not None:
        return found
    if os.path.isdir(path):
        scheme = "oci" if os.path.isfile(os.path.join(path, "oci-layout")) else "dir"
        return ImageReference.parse(f"{scheme}:{path}")
    with open(path, "rb") as file:
        head = file.read(64)
    start, magic = _SIF_MAGIC
    if head.startswith(_SQUASHFS_MAGIC) or head[start : start + len(magic)] == magic:
        return ImageReference.parse(f"file:{path}")
    raise UnsupportedImage(
        f"{path} is no image",
        "It is neither a pointer file of UDI nor a squashfs or SIF file.",
        "A saved image is docker-archive:FILE, an OCI layout oci:DIR.",
    )
