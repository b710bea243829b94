"""``udi sbatch``, ``udi batch`` and ``udi step``: batch scripts whose ``#UDI`` lines name an image."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence

from udi_core.batch import VARIABLE, Job, directives, interpreter, prepared, recorded
from udi_core.cli import BEGAN
from udi_core.cli.run import read_env_file
from udi_core.config import Config, load_config
from udi_core.errors import ImageAbsent, UsageError
from udi_core.mixed import for_this_node, pull_for_nodes, stored_for_nodes
from udi_core.mount import NodeMounts
from udi_core.node_kind import DEFAULT, parse_kinds
from udi_core.programs import PROGRAM
from udi_core.queued import submitting
from udi_core.ranks import calls_for_ranks, serve_ranks
from udi_core.reference import ImageReference
from udi_core.sandbox import Host, LaunchSpec, build, execute, sourced
from udi_core.slurm import options_with_value, program_at
from udi_core.store import ImageStore, StoredImage
from udi_core.values import replace
from udi_core.volumes import Volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: Options of ``#UDI`` lines, and of ``udi sbatch`` before the script; each takes a value.
OPTIONS = ("image", "volume", "env", "env-file", "workdir", "interpreter")


def sbatch(arguments: argparse.Namespace) -> int:
    """Pull, then submit; the exit status is sbatch's."""
    from udi_core import _process
    from udi_core.cli.show import lazy_progress

    words: list[str] = arguments.words
    if words[:1] in (["-h"], ["--help"]):
        print(arguments.help)
        return 0
    program = _process.require_tool("sbatch", reason="submit batch scripts")
    known = options_with_value(_process.run([program, "--help"]).stdout.decode(errors="replace"))
    at = program_at(words, {**known, **dict.fromkeys(OPTIONS, True)})
    ours, theirs = split_options(words[:at])
    name, text = _read_script(words[at:])
    said = _options([*directives(text), *ours])
    # As with sbatch's own options: what the command line says takes the place of what the script says.
    references = parse_kinds(_options(ours).image or said.image)
    if not references:
        raise UsageError(
            "The script names no image",
            "It has no line  #UDI --image=REF, and the command line has no --image.",
            "Add one, or submit it with sbatch.",
        )
    own = interpreter(text)  # looked at before a pull that may take minutes
    config = load_config()
    with lazy_progress() as progress:
        images = pull_for_nodes(references, ImageStore(config.store), config, progress)
    job = Job(
        images={kind: image.digest for kind, image in images.items()},
        references=references,
        store=config.store,
        interpreter=tuple(said.interpreter.split()) if said.interpreter else own,
        options=tuple(_without_image([*directives(text), *ours])),
    )
    # A comment of the user's own stays; then the images are mounted by whatever comes first.
    if not any(word.startswith("--comment") for word in theirs) and not re.search(r"(?m)^#SBATCH\s.*--comment", text):
        theirs.append("--comment=udi:" + ",".join(f"{kind}=id:{digest[7:]}" for kind, digest in job.images.items()))
    with (
        tempfile.TemporaryDirectory(prefix="udi-sbatch-") as directory,
        submitting(ImageStore(config.store), job.images.values()) as submission,
    ):
        # Slurm calls a job by its script's name, and reads the script before sbatch ends.
        path = os.path.join(directory, name)
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(prepared(text, job, PROGRAM))
        process = _process.spawn([program, *theirs, path, *words[at + 1 :]], stdout=_process.PIPE)
        # Line by line: with --wait, sbatch goes on for as long as the job.
        for line in process.stdout or ():
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
            submission.hear(line.decode(errors="replace"))
        return process.wait()


def batch(arguments: argparse.Namespace) -> int:
    """Run the script in its image; what Slurm starts on the job's first node.

    The script may call srun and the like, which this process runs for it: programs of its steps are in the image too.
    Where the site allows no such calls, or the image has no Python for them, this process becomes the script.
    """
    if not arguments.words:
        raise UsageError("No script was given", "", "Write: udi batch SCRIPT [ARGUMENT…]")
    path, *rest = arguments.words
    try:
        path = os.path.abspath(path)
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(
            "The script cannot be read", f"{path}: {error.strerror}", "udi batch SCRIPT [ARGUMENT…]"
        ) from error
    config = load_config()
    job = recorded(text) or _job_of(text, config)
    image = _image(job, config)
    command = (*(job.interpreter or (image.shell or "/bin/sh",)), path, *rest)
    # Slurm keeps its copy of the script where only this job needs to look.
    support = (Volume(source=path, target=path, read_only=True),)
    spec = _spec(job, command, support)
    mounted = NodeMounts(config, ImageStore(job.store)).mount(image, ranks=True)
    host = Host.observe(mounted)
    return serve_ranks(lambda: calls_for_ranks(config, job), spec, mounted, config, host, BEGAN)


def step(arguments: argparse.Namespace) -> NoReturn:
    """Become a program in the image of the task that called srun: ``srun udi step PROGRAM``."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not os.environ.get(VARIABLE):
        raise UsageError(
            "This is no step of a batch script in an image", f"{VARIABLE} is not set.", "Write: udi run REF -- PROGRAM"
        )
    if not words:
        raise UsageError("No program was given", "", "Write: srun udi step PROGRAM [ARGUMENT…]")
    config, job = load_config(), Job.decode(os.environ[VARIABLE])
    image = _image(job, config)
    mounted = NodeMounts(config, ImageStore(job.store)).mount(image)
    spec = _spec(job, sourced(job.setup, image.shell, tuple(words)))
    execute(build(spec, mounted, config, Host.observe(mounted)), BEGAN)


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our options, each as ``--name=value``, and all other words."""
    ours: list[str] = []
    theirs: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in OPTIONS:
            ours.append(f"--{name}={value if equals else next(rest, '')}")
        else:
            theirs.append(word)
    return ours, theirs


def _read_script(words: Sequence[str]) -> tuple[str, str]:
    """Name and text of the script; of standard input if no file is named, as with sbatch."""
    if not words:
        return "sbatch", sys.stdin.read()
    try:
        with open(words[0], encoding="utf-8", errors="surrogateescape") as file:
            return os.path.basename(words[0]), file.read()
    except OSError as error:
        raise UsageError("The script cannot be read", f"{words[0]}: {error.strerror}") from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        known = ", ".join("--" + name for name in OPTIONS)
        raise UsageError("An option for the image is wrong", message, f"#UDI lines may hold {known}.")


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="#UDI", add_help=False, allow_abbrev=False)
    for name in ("image", "volume", "env", "env-file"):
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("--workdir")
    parser.add_argument("--interpreter", default="")
    return parser.parse_args(words)


def _without_image(words: Sequence[str]) -> list[str]:
    """The options of a job's launch: without images, which have become digests, and volumes' paths made absolute."""
    said = _options(words)
    found = [f"--volume={Volume.parse(each)}" for each in said.volume]
    # A name alone stands for this environment's value; what is not set here is not set there (docker-run(1)).
    found += [
        f"--env={each}" if "=" in each else f"--env={each}={os.environ[each]}"
        for each in said.env
        if "=" in each or each in os.environ
    ]
    found += [f"--env-file={os.path.abspath(each)}" for each in said.env_file]
    return [*found, f"--workdir={said.workdir}"] if said.workdir else found


def _job_of(text: str, config: Config) -> Job:
    """The job of a script that was given to sbatch as it is: images are looked up now, and pulled if need be."""
    words = directives(text)
    said = _options(words)
    references = parse_kinds(said.image)
    if not references:
        raise UsageError("The script names no image", "It has no line  #UDI --image=REF.")
    store = ImageStore(config.store)
    try:
        images = stored_for_nodes(references, store, config)
        for_this_node({kind: image.digest for kind, image in images.items()}, "the store")
    except (ImageAbsent, UsageError):
        images = pull_for_nodes(references, store, config)
    return Job(
        images={kind: image.digest for kind, image in images.items()},
        references=references,
        store=config.store,
        interpreter=tuple(said.interpreter.split()) or interpreter(text),
        options=tuple(_without_image(words)),
    )


def _image(job: Job, config: Config) -> StoredImage:
    """This node's image; pulled again if somebody has removed it since the job was submitted."""
    store = ImageStore(job.store)
    digest = for_this_node(job.images, ", ".join(job.references.values()))
    try:
        return store.image(digest)
    except ImageAbsent:
        kind = next(kind for kind, each in job.images.items() if each == digest)
        reference = ImageReference.parse(job.references.get(kind) or job.references[DEFAULT])
        if reference.transport != "docker":
            raise
        print(f"udi: {reference.short} was removed since the job was submitted, and is pulled again", file=sys.stderr)
    from udi_core.pulling import pull

    return pull(replace(reference, tag=None, digest=digest), store, replace(config, store=job.store))


def _spec(job: Job, command: tuple[str, ...], support: tuple[Volume, ...] = ()) -> LaunchSpec:
    said = _options(job.options)
    return LaunchSpec(
        command=command,
        volumes=tuple(map(Volume.parse, said.volume)),
        env={name: value for name, _, value in (each.partition("=") for each in said.env)},
        env_file={name: value for path in said.env_file for name, value in read_env_file(path).items()},
        workdir=said.workdir,
        by=job.by,
        support=support,
    )
