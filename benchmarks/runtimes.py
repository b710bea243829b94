"""What other container runtimes are told to do: how each pulls an image and how each starts ``/bin/true`` in it.

Nothing is run here.  A runtime is a function from a :class:`Place` to a :class:`Recipe`; ``benchmarks.peers`` carries
recipes out.  Each runtime is given its quickest documented way: nothing that a task does not need (a network, a
cgroup, a build cache) is made for it.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Path in the image by which a start proves that it ran there.
MARK = "/etc/udi-bench"
#: What is asked of every start.
TRUE = ("/bin/true",)

_SHIFTER_IMAGE = "0" * 63 + "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a runtime works.

    Attributes:
        directory: its own, empty; its home as well.
        source: ``host:port/repository:tag`` in a registry that speaks HTTP.
        secure: the same image in one that speaks HTTPS, with a certificate that nobody knows.
        squashfs: the image as one squashfs file, for a runtime that is given one.
        root: whether root runs it.
    """

    directory: str
    source: str
    secure: str
    squashfs: str
    root: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Commands of a runtime.

    Attributes:
        pull: shell script from the registry to what a start needs; measured.  "" if the runtime has no such thing.
        prepare: shell script that runs once before the starts, not measured.
        starts: name of a way to start → the words in front of the command.
        undo: shell script that leaves nothing behind.
        env: variables for all of these.
    """

    pull: str = ""
    prepare: str = ""
    starts: Mapping[str, Sequence[str]]
    undo: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A program that runs images.

    Attributes:
        programs: all of them have to be in PATH.
        get: how to get it, for the line on what is missing.
        of: who may run it: "all", "root", or "user" for an ordinary user alone.
    """

    name: str
    programs: tuple[str, ...]
    get: str
    recipe: Callable[[Place], Recipe]
    of: str = "all"


def _mounted(place: Place) -> tuple[str, str, str]:
    """Scripts to mount the squashfs file by hand and to take the mount away, and the mount point."""
    point = f"{place.directory}/mnt"
    if place.root:
        return f"mkdir {point}; mount -o loop,ro {place.squashfs} {point}", f"umount {point}", point
    return f"mkdir {point}; squashfuse_ll {place.squashfs} {point}", f"fusermount3 -u {point}", point


def by_hand(place: Place) -> Recipe:
    """skopeo, umoci, mksquashfs; then bubblewrap in the mounted file."""
    mount, unmount, point = _mounted(place)
    top = place.directory
    rootless = "" if place.root else "--rootless "
    return Recipe(
        pull=f"skopeo copy -q --src-tls-verify=false docker://{place.source} oci:{top}/oci:x"
        f" && umoci unpack {rootless}--image {top}/oci:x {top}/bundle"
        f" && mksquashfs {top}/bundle/rootfs {top}/image.squashfs"
        " -quiet -no-progress -comp zstd -Xcompression-level 3",
        prepare=mount,
        starts={
            "bwrap in a mount by hand": ("bwrap", "--ro-bind", point, "/", "--dev", "/dev", "--proc", "/proc", "--")
        },
        undo=unmount,
    )


def _oci(program: str) -> Callable[[Place], Recipe]:
    """An OCI runtime on its own.  It reads its command from a file, so what is put behind its words is not used."""

    def recipe(place: Place) -> Recipe:
        mount, unmount, point = _mounted(place)
        bundle = f"{place.directory}/bundle"
        rootless = "" if place.root else " --rootless"
        edit = (
            "import json, sys; path = sys.argv[1] + '/config.json'; spec = json.load(open(path)); "
            "spec['process'].update(terminal=False, args=['/bin/true'], rlimits=[], cwd='/'); "
            "spec['root'] = {'path': sys.argv[2], 'readonly': True}; "
            "spec['mounts'] = [m for m in spec['mounts'] if m['type'] not in ('cgroup', 'sysfs')]; "
            "json.dump(spec, open(path, 'w'))"
        )
        # A container has a name, and two of them at once must not have the same.
        start = f'exec {program} --root {place.directory}/state run --bundle {bundle} "b$$"'
        return Recipe(
            prepare=f"{mount}; mkdir {bundle} && cd {bundle} && {program} spec{rootless}"
            f' && python3 -c "{edit}" {bundle} {point}',
            starts={f"{program} in a mount by hand": ("sh", "-c", start)},
            undo=unmount,
        )

    return recipe


def podman(place: Place) -> Recipe:
    """podman with storage of its own."""
    store = f"podman --root {place.directory}/root --runroot {place.directory}/run --storage-driver overlay".split()
    if not place.root:
        store += ["--storage-opt", "ignore_chown_errors=true"]
    return Recipe(
        pull=f"{_podman_settings(place)} && {shlex.join(store)} pull -q --tls-verify=false {place.source}",
        starts={"podman run": (*store, "run", "--rm", "--pull=never", place.source)},
        undo=f"{shlex.join(store)} rm -fa; {shlex.join(store)} rmi -fa;"
        f" chmod -R u+rwX {place.directory}; umount {place.directory}/root/overlay",
        env={"CONTAINERS_CONF": f"{place.directory}/containers.conf"},
    )


def podman_hpc(place: Place) -> Recipe:
    """NERSC's podman-hpc: podman, and a squashfs file beside its storage."""
    top = place.directory
    helpers = os.path.dirname(os.path.realpath(shutil.which("podman-hpc") or ""))
    return Recipe(
        pull=f"{_podman_settings(place)} && mkdir {top}/hooks {top}/modules"
        f" && podman-hpc pull --tls-verify=false {place.source}",
        starts={"podman-hpc run": ("podman-hpc", "run", "--rm", "--pull=never", place.source)},
        # Its overlays leave directories that their owner may not enter.
        undo=f"podman --root {top}/graph --runroot {top}/run rm -fa; chmod -R u+rwX {top}",
        env={
            "CONTAINERS_CONF": f"{top}/containers.conf",
            "STORAGE_DRIVER": "overlay",
            "SQUASH_DIR": f"{top}/squash",
            "PODMANHPC_GRAPH_ROOT": f"{top}/graph",
            "PODMANHPC_RUN_ROOT": f"{top}/run",
            "PODMANHPC_CONFIG_HOME": f"{top}/config",
            "PODMANHPC_HOOKS_DIR": f"{top}/hooks",
            "PODMANHPC_MODULES_DIR": f"{top}/modules",
            "PODMANHPC_MOUNT_PROGRAM": f"{helpers}/fuse-overlayfs-wrap",
        },
    )


def _podman_settings(place: Place) -> str:
    """Script that writes podman's settings: no network, and limits that an ordinary user's session has as well.

    crun is podman's own choice; before 1.9 it refuses a machine that has cgroups of both versions.
    """
    engine = ['cgroup_manager = "cgroupfs"']
    if os.path.isdir("/sys/fs/cgroup/unified"):
        engine.append('runtime = "runc"')
    lines = ["[containers]", 'netns = "none"', 'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]']
    return f"printf '%s\\n' {shlex.join([*lines, '[engine]', *engine])} >{place.directory}/containers.conf"


def charliecloud(place: Place) -> Recipe:
    """Charliecloud, from its squashfs file, which each start mounts anew, and from the unpacked directory."""
    file, directory = f"{place.directory}/image.sqfs", f"{place.directory}/image"
    storage = f"{place.directory}/storage"
    return Recipe(
        pull=f"ch-image -s {storage} --tls-no-verify --no-cache pull {place.secure}"
        f" && ch-convert -i ch-image -o squash {place.secure} {file}",
        prepare=f"ch-convert -i squash -o dir {file} {directory}",
        starts={"ch-run FILE": ("ch-run", file, "--"), "ch-run DIRECTORY": ("ch-run", directory, "--")},
        env={"CH_IMAGE_STORAGE": storage},
    )


def enroot(place: Place) -> Recipe:
    """enroot, from its squashfs file, which each start mounts anew, and from the unpacked directory."""
    file = f"{place.directory}/image.sqsh"
    return Recipe(
        pull=f"enroot import -o {file} docker://{place.source.replace('/', '#', 1)}",
        prepare=f"enroot create -n bench {file}",
        starts={"enroot start FILE": ("enroot", "start", file), "enroot start NAME": ("enroot", "start", "bench")},
        undo="enroot remove -f bench",
        env={"ENROOT_ALLOW_HTTP": "yes", "ENROOT_RUNTIME_PATH": f"{place.directory}/runtime"},
    )


def shifter(place: Place) -> Recipe:
    """Shifter, which is set-uid root and wants an ordinary user.

    Its images come from a gateway with a database, which is no part of this: root puts the file where it looks.
    """
    name = f"{_shifter_images()}/{_SHIFTER_IMAGE}"
    return Recipe(
        prepare=f"cp {place.squashfs} {name}.squashfs && echo FORMAT:squashfs >{name}.meta" if place.root else "",
        starts={} if place.root else {"shifter": ("shifter", f"--image=id:{_SHIFTER_IMAGE}")},
        undo=f"rm -f {name}.squashfs {name}.meta" if place.root else "",
    )


def _shifter_images() -> str:
    """``imagePath`` of the installed Shifter's configuration; "" if it cannot be read."""
    path = Path(shutil.which("shifter") or "/").resolve().parent.parent / "etc/udiRoot.conf"
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    return next((each.partition("=")[2].strip() for each in lines if each.startswith("imagePath=")), "")


def _apptainer(program: str) -> Callable[[Place], Recipe]:
    def recipe(place: Place) -> Recipe:
        file = f"{place.directory}/image.sif"
        variable = program.upper()
        return Recipe(
            pull=f"{program} pull --no-https {file} docker://{place.source}",
            starts={f"{program} exec": (program, "exec", file)},
            env={f"{variable}_CACHEDIR": f"{place.directory}/cache", f"{variable}_TMPDIR": place.directory},
        )

    return recipe


_APT = "apt-get install "
RUNTIMES = (
    Runtime(
        name="by hand",
        programs=("skopeo", "umoci", "mksquashfs", "bwrap", "squashfuse_ll"),
        get=f"{_APT}skopeo umoci squashfs-tools bubblewrap squashfuse",
        recipe=by_hand,
    ),
    Runtime(name="crun", programs=("crun",), get=f"{_APT}crun", recipe=_oci("crun")),
    Runtime(name="runc", programs=("runc",), get=f"{_APT}runc", recipe=_oci("runc")),
    Runtime(name="podman", programs=("podman",), get=f"{_APT}podman fuse-overlayfs", recipe=podman),
    Runtime(
        name="podman-hpc",
        programs=("podman-hpc", "podman", "fuse-overlayfs", "mksquashfs.static"),
        get="pip install podman-hpc, podman, fuse-overlayfs, a mksquashfs that is linked statically",
        recipe=podman_hpc,
        of="user",
    ),
    Runtime(
        name="charliecloud",
        programs=("ch-run", "ch-image", "ch-convert"),
        get=f"{_APT}charliecloud python3-lark python3-requests",
        recipe=charliecloud,
    ),
    Runtime(name="enroot", programs=("enroot",), get="https://github.com/NVIDIA/enroot", recipe=enroot),
    Runtime(name="shifter", programs=("shifter",), get="https://github.com/NERSC/shifter", recipe=shifter),
    Runtime(
        name="apptainer",
        programs=("apptainer",),
        get="https://apptainer.org (needs Go 1.24 to build)",
        recipe=_apptainer("apptainer"),
    ),
    Runtime(
        name="singularity",
        programs=("singularity",),
        get="https://sylabs.io/singularity (needs Go to build)",
        recipe=_apptainer("singularity"),
    ),
)


def is_front(program: str) -> bool:
    """Whether ``apptainer`` in PATH is UDI's own front and no peer."""
    return os.path.exists(os.path.join(os.path.dirname(program), "udi-front"))


def present(root: bool, which: Callable[[str], str | None] = shutil.which) -> tuple[list[Runtime], list[Runtime]]:
    """Runtimes that can be measured here by root or by an ordinary user, and those that are missing."""
    found, missing = [], []
    for each in RUNTIMES:
        paths = [which(program) for program in each.programs]
        if not all(path and not is_front(path) for path in paths):
            missing.append(each)
        elif each.of in ("all", "root" if root else "user"):
            found.append(each)
    return found, missing
