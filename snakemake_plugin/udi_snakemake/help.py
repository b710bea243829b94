"""What ``apptainer --help`` says when it is UDI's."""

from __future__ import annotations

from udi_snakemake.arguments import FLAGS, REFUSED_VERBS

_GENERAL = """\
{program} (UDI): runs images with UDI; this is not the real {program}.

Usage: {program} [--quiet] [--silent] [--verbose] [--debug] VERB …

  exec  [FLAGS] IMAGE COMMAND…   run a command in an image
  run   [FLAGS] IMAGE [ARGS…]    run the image's entrypoint
  shell [FLAGS] IMAGE            start a shell in an image
  pull  [FLAGS] [FILE] IMAGE     fetch an image into UDI's store and leave a pointer file
  inspect [FLAGS] IMAGE          show labels, environment, entrypoint and digest
  version, --version             what Snakemake asks for

IMAGE is a pointer file, a squashfs or SIF file, docker://NAME[:TAG][@DIGEST], oci:DIR[:TAG],
docker-archive:FILE[:TAG], dir:PATH or id:DIGEST.

Not done by UDI: {refused}.

The way back to the real {program}: set UDI_SNAKEMAKE=0 for one command, or for the shell
  eval "$(udi env --off snakemake)"
"""

_VERB = """\
{program} {verb} (UDI): this is not the real {program}.

Flags: {flags}
Each can be set in the environment too, as APPTAINER_<FLAG> or SINGULARITY_<FLAG> (APPTAINER_BIND, SINGULARITY_NV).
"""


def text(program: str, topic: str) -> str:
    """Help for the program, or for one verb of it."""
    if topic in FLAGS:
        flags = " ".join(sorted(name for flag, (_, more, _) in FLAGS[topic].items() for name in (flag, *more)))
        return _VERB.format(program=program, verb=topic, flags=flags)
    if topic in REFUSED_VERBS:
        return f"{program} {topic}: not done by UDI. {REFUSED_VERBS[topic]}\n"
    return _GENERAL.format(program=program, refused=", ".join(sorted(REFUSED_VERBS)))
