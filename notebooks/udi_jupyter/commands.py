"""``udi kernel install|list|remove``: kernelspecs whose kernels run inside an image."""

from __future__ import annotations

import argparse
import shlex

from udi_core import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    install = verbs.add_parser("install", help="make a kernel that runs in an image")
    install.add_argument("--image", required=True, metavar="REF")
    install.add_argument("--name", help="default: made from the reference")
    install.add_argument("--display-name", metavar="TEXT", help="what JupyterLab shows")
    install.add_argument("--python", default="", metavar="PATH", help="default: the python3 on the image's PATH")
    install.add_argument("--volume", action="append", default=[], metavar="SRC:DST[:ro]")
    install.add_argument("--env", action="append", default=[], metavar="K=V")
    install.add_argument("--srun", metavar="OPTIONS", help="run on another node, by srun with these options")
    install.add_argument(
        "--bridge", action="store_true", help="let the kernel call sbatch, srun and udi of this machine"
    )
    install.add_argument("--prefix", help="install below this directory, not for the user alone")
    install.add_argument(
        "--no-pull", action="store_true", help="leave pulling, and finding ipykernel, to the first start"
    )
    verbs.add_parser("list", help="the kernels that run in images")
    remove = verbs.add_parser("remove", help="remove kernels")
    remove.add_argument("names", nargs="*", metavar="NAME")
    remove.add_argument("--lent", action="store_true", help="also delete the ipykernels that were lent to images")


KERNEL = Command(help="Jupyter kernels inside images", arguments=_arguments, run="udi_jupyter.commands:kernel")


def kernel(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    from udi_jupyter import kernelspec

    if arguments.verb == "install":
        return _install(arguments)
    if arguments.verb == "list":
        for each in kernelspec.installed():
            if each.settings is None:
                print(f"{each.name}  (its settings cannot be read: install it anew, or remove it)")
            else:
                words = each.name, each.settings.image, each.display_name, shlex.join(each.settings.srun)
                print("  ".join(words).rstrip())
    else:
        return _remove(arguments)
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from udi_core import UsageError, lazy_progress
    from udi_jupyter.inside import inside
    from udi_jupyter.ipykernel import provide
    from udi_jupyter.kernelspec import KernelSettings, install

    for each in arguments.env:
        if "=" not in each:
            raise UsageError(f"--env {each!r} is not K=V", "", "For example: --env THREADS=4")
    settings = KernelSettings.parse(
        {
            "image": arguments.image,
            "python": arguments.python,
            "volumes": arguments.volume,
            "env": dict(each.split("=", 1) for each in arguments.env),
            "srun": _srun(arguments.srun),
            "bridge": arguments.bridge,
        }
    )
    encrypts = False
    if not arguments.no_pull:
        with lazy_progress() as progress, inside(settings, progress=progress) as image:
            encrypts = provide(image, progress).encrypts
    made = install(
        settings,
        name=arguments.name,
        display_name=arguments.display_name,
        prefix=arguments.prefix,
        encrypts=encrypts,
    )
    print(f"installed {made.name} in {made.directory}")
    return 0


def _srun(options: str | None) -> tuple[str, ...]:
    from udi_core import UsageError

    if options is None:
        return ()
    try:
        return ("srun", *shlex.split(options))
    except ValueError as error:
        raise UsageError(
            f"--srun {options!r} cannot be split into options", str(error), "Quote it as in a shell."
        ) from error


def _remove(arguments: argparse.Namespace) -> int:
    from udi_core import UsageError
    from udi_jupyter import kernelspec
    from udi_jupyter.ipykernel import remove_lent

    if not arguments.names and not arguments.lent:
        raise UsageError("Which kernels?", "", "List them: udi kernel list")
    for name in arguments.names:
        print(f"removed {kernelspec.remove(name).directory}")
    if arguments.lent:
        for kind in remove_lent():
            print(f"removed the ipykernel lent to {kind}")
    return 0
