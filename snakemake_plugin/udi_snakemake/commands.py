"""``udi env``, ``udi prefetch`` and ``udi lock``: registered as entry points of the group ``udi.commands``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import TYPE_CHECKING

from udi_core import Command

if TYPE_CHECKING:
    from udi_snakemake.workflow import WorkflowImages


def _env(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["snakemake"], help="what to set the shell up for")
    parser.add_argument("--off", action="store_true", help="take it back: the real apptainer is found again")
    parser.add_argument("--shell", choices=["sh", "csh", "fish"], help="default: that of $SHELL; bash and zsh are sh")


def _workflow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--directory", default=".", help="where Snakemake will run (default: here)")
    parser.add_argument("--apptainer-prefix", metavar="DIR", help="as given to Snakemake")
    parser.add_argument(
        "--snakemake-args",
        metavar="ARGS",
        default="",
        help="targets and options to plan with: '--configfile x'",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _prefetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-s", "--snakefile", metavar="FILE", help="default: where Snakemake looks")
    parser.add_argument("--no-mount", action="store_true", help="pull only")
    _workflow(parser)


def _lock(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snakefile", nargs="?", metavar="SNAKEFILE", help="default: where Snakemake looks")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: udi.lock in the directory")
    parser.add_argument("--update", action="store_true", help="pin anew what is pinned already")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if an image is not pinned")
    _workflow(parser)


ENV = Command(help="print shell code that switches an adapter on or off", arguments=_env, run=f"{__name__}:env")
PREFETCH = Command(
    help="pull and mount all images of a Snakemake workflow", arguments=_prefetch, run=f"{__name__}:prefetch"
)
LOCK = Command(help="pin the images of a Snakemake workflow to digests", arguments=_lock, run=f"{__name__}:lock")


def env(arguments: argparse.Namespace) -> int:
    """``eval "$(udi env snakemake)"``"""
    from udi_snakemake import activation

    name = os.path.basename(os.environ.get("SHELL", "sh"))
    shell = arguments.shell or {"csh": "csh", "tcsh": "csh", "fish": "fish"}.get(name, "sh")
    sys.stdout.write(activation.shell_code(os.environ, shell, off=arguments.off))
    real = activation.real_program(os.environ.get("PATH", ""))
    if real and not arguments.off:
        print(f"udi: apptainer and singularity are UDI's now, not {real}.", file=sys.stderr)
        print('udi: the way back: eval "$(udi env --off snakemake)"', file=sys.stderr)
    return 0


def prefetch(arguments: argparse.Namespace) -> int:
    """``udi prefetch``"""
    from udi_core import lazy_progress
    from udi_snakemake import workflow

    directory, found = _find(arguments)
    prefix = workflow.prefix_of(directory, arguments.apptainer_prefix)
    with lazy_progress(quiet=arguments.json) as progress:
        fetched = workflow.prefetch(found.images, directory, prefix, mount=not arguments.no_mount, progress=progress)
    if arguments.json:
        _print_json(
            {
                "images": [
                    {"image": each.image, "digest": each.stored.digest, "size": each.stored.size, "mount": each.backend}
                    for each in fetched
                ],
                "unknown": [f"{each.file}:{each.line}: {each.text}" for each in found.unknown],
            }
        )
    else:
        for each in fetched:
            how = f"mounted ({each.backend})" if each.backend else "pulled"
            print(f"{each.stored.digest[7:19]}  {each.stored.size / 1e6:8.1f} MB  {how}  {each.image}")
        print(f"Images that are ready: {len(fetched)}; Snakemake finds them in {prefix}", file=sys.stderr)
        _warn(found)
    return 1 if found.unknown else 0


def lock(arguments: argparse.Namespace) -> int:
    """``udi lock``"""
    from udi_snakemake import lock as locks
    from udi_snakemake import workflow

    directory, found = _find(arguments)
    path = arguments.output or locks.find(directory) or os.path.join(directory, locks.FILE_NAME)
    before = workflow.empty_lock(path)
    if arguments.check:
        absent = workflow.missing(found.images, before.images, directory)
        for image in absent:
            print(f"not pinned: {image}", file=sys.stderr)
        _warn(found)
        return 1 if absent or found.unknown else 0
    prefix = workflow.prefix_of(directory, arguments.apptainer_prefix)
    after, changes = workflow.lock_images(found.images, before, directory, prefix, update=arguments.update)
    locks.dump(after)
    if arguments.json:
        _print_json([{"reference": each.reference, "digest": each.digest, "change": each.what} for each in changes])
    else:
        for each in changes:
            print(f"{each.what:8}{each.digest[7:19]}  {each.reference}")
        print(f"Images that are pinned in {path}: {len(after.images)}", file=sys.stderr)
        _warn(found)
    return 1 if found.unknown else 0


def _find(arguments: argparse.Namespace) -> tuple[str, WorkflowImages]:
    from udi_snakemake import discovery, workflow

    directory = os.path.abspath(arguments.directory)
    snakefile = arguments.snakefile or discovery.default_snakefile(directory)
    return directory, workflow.find_images(snakefile, directory, shlex.split(arguments.snakemake_args))


def _warn(found: WorkflowImages) -> None:
    for each in found.unknown:
        print(f"udi: cannot tell the image of {each.file}:{each.line}: {each.text}", file=sys.stderr)
    if found.unknown and found.excuse:
        lines = "\n     ".join(found.excuse.splitlines())
        print(f"udi: because Snakemake could not plan the workflow:\n     {lines}", file=sys.stderr)
        print("udi: give what it needs: --snakemake-args '--configfile FILE TARGET'", file=sys.stderr)


def _print_json(document: object) -> None:
    import json

    print(json.dumps(document, indent=1))
