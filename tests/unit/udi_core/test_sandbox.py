"""The bubblewrap command line, as text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from udi_core.config import Config
from udi_core.errors import CommandNotFound, ConfigError, LaunchError, NotExecutable, PolicyError
from udi_core.manifest import ImageConfig
from udi_core.mount import MountedImage
from udi_core.policy import Policy
from udi_core.sandbox import DEFAULT_PATH, Host, Launch, LaunchSpec, build
from udi_core.tree import resolve
from udi_core.volumes import Volume


class TextTree:
    """A file tree written as ``{path: "dir" | "file" | "exec[ content]" | "-> target"}``; parents need not be named."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = {"/": "dir"}
        for path, kind in entries.items():
            parts = path.strip("/").split("/")
            for depth in range(1, len(parts)):
                self.entries.setdefault("/" + "/".join(parts[:depth]), "dir")
            self.entries[path] = kind

    def kind(self, path: str) -> str:
        kind = self.entries.get(path.rstrip("/") or "/", "")
        return "link" if kind.startswith("-> ") else "file" if kind.startswith("exec") else kind

    def readlink(self, path: str) -> str:
        return self.entries[path].removeprefix("-> ")

    def names(self, path: str) -> tuple[str, ...]:
        prefix = path.rstrip("/") + "/"
        return tuple(sorted({p[len(prefix) :].partition("/")[0] for p in self.entries if p.startswith(prefix)} - {""}))

    def is_executable(self, path: str) -> bool:
        return self.entries.get(path, "").startswith("exec")

    def head(self, path: str) -> bytes:
        return self.entries[path].removeprefix("exec ").encode("latin-1")


DEBIAN = {
    **{f"/{name}": "dir" for name in ("dev", "etc", "home", "proc", "root", "sys", "tmp", "usr/bin", "var/lib")},
    "/bin": "-> usr/bin",
    "/lib64": "-> usr/lib64",
    "/usr/bin/bash": "exec",
    "/usr/bin/true": "exec",
}
NODE = {
    **{f"/{name}": "dir" for name in ("dev/shm", "proc/sys", "sys", "N/etc")},
    "/home/ada": "dir",
    "/tmp": "dir",
    "/scratch/ada": "dir",
    "/data/in": "dir",
    "/data/file": "file",
    "/run/munge.sock": "file",
}


def launch(
    command: tuple[str, ...] = ("true",),
    *,
    image: Mapping[str, str] = DEBIAN,
    node: Mapping[str, str] = NODE,
    cwd: str = "/home/ada",
    uid: int = 1000,
    environ: Mapping[str, str] | None = None,
    image_config: ImageConfig | None = None,
    config: dict[str, Any] | None = None,
    join: tuple[str, ...] = (),
    is_admin: bool = False,
    **spec: Any,
) -> Launch:
    stored = cast(Any, SimpleNamespace(digest="sha256:ab", reference="x", config=image_config or ImageConfig()))
    mounted = MountedImage(stored, "/N/root", join, 9, "kernel", "/N/etc", "/N/root", (9,))
    host = Host(
        image=TextTree(image),
        node=TextTree(node),
        cwd=cwd,
        uid=uid,
        environ={"HOME": "/home/ada"} if environ is None else environ,
        bwrap="/usr/bin/bwrap",
        is_admin=is_admin,
    )
    return build(
        LaunchSpec(command=command, **spec), mounted, Config(store="/s", node_dir="/n", **(config or {})), host
    )


def mounts(argv: tuple[str, ...]) -> list[str]:
    """``--option source target`` triples and ``--option path`` pairs as lines."""
    arity = {"--ro-bind": 2, "--bind": 2, "--dev-bind": 2, "--symlink": 2, "--tmpfs": 1, "--dev": 1, "--remount-ro": 1}
    words = iter(argv[: argv.index("--chdir")])
    return [" ".join([word, *itertools.islice(words, arity[word])]) for word in words if word in arity]


def chdir(argv: tuple[str, ...]) -> str:
    return argv[argv.index("--chdir") + 1]


def test_an_image_that_has_every_mount_point_is_one_mount() -> None:
    lines = mounts(launch(cwd="/tmp", environ={}).argv)
    assert lines == [
        "--ro-bind /N/root /",
        "--dev-bind /dev /dev",
        "--ro-bind /N/etc /etc",
        "--bind /proc /proc",
        "--bind /sys /sys",
        "--bind /tmp /tmp",
    ]


def test_a_missing_home_opens_only_the_directory_above_it() -> None:
    lines = mounts(launch(image={**DEBIAN, "/home/image/x": "file"}).argv)
    assert "--ro-bind /N/root /" in lines
    at = lines.index("--tmpfs /home")
    assert lines[at + 1 : at + 3] == ["--ro-bind /N/root/home/image /home/image", "--bind /home/ada /home/ada"]
    assert lines[-1] == "--remount-ro /home"


def test_a_missing_top_level_directory_opens_the_root() -> None:
    image = {**DEBIAN, "/.dockerenv": "file", "/odd name\nhere": "dir"}
    lines = mounts(launch(image=image, volumes=(Volume(source="/data/in", target="/data/in"),)).argv)
    assert "--ro-bind /N/root /" not in lines
    assert "--symlink usr/bin /bin" in lines and "--ro-bind /N/root/usr /usr" in lines
    assert "--ro-bind /N/root/.dockerenv /.dockerenv" in lines
    assert "--ro-bind /N/root/odd name\nhere /odd name\nhere" in lines
    assert "--bind /data/in /data/in" in lines
    assert not any(line.endswith(" /N/root/etc /etc") for line in lines), "mounted once, as the copy"
    assert lines[-1] == "--remount-ro /"


def test_a_deep_target_opens_nothing_but_its_parent() -> None:
    image = {
        **DEBIAN,
        "/opt/app/bin/x": "file",
        "/opt/app/lib/y": "file",
        "/opt/app/current": "-> lib",
        "/opt/o": "dir",
    }
    lines = mounts(launch(image=image, volumes=(Volume(source="/data/in", target="/opt/app/data"),)).argv)
    at = lines.index("--tmpfs /opt/app")
    assert lines[at + 1 : at + 5] == [
        "--ro-bind /N/root/opt/app/bin /opt/app/bin",
        "--symlink lib /opt/app/current",
        "--ro-bind /N/root/opt/app/lib /opt/app/lib",
        "--bind /data/in /opt/app/data",
    ]
    assert "--ro-bind /N/root /" in lines and "--remount-ro /opt/app" in lines


def test_many_files_are_links_into_a_second_mount() -> None:
    files = {f"/usr/lib/lib{n}.so": "file" for n in range(100)}
    lines = mounts(launch(image={**DEBIAN, **files}, volumes=(Volume(source="/data/in", target="/usr/lib/new"),)).argv)
    assert "--ro-bind /N/root /.udi/image" in lines
    assert "--symlink /.udi/image/usr/lib/lib42.so /usr/lib/lib42.so" in lines
    assert len([line for line in lines if "bind" in line]) < 20


def test_a_target_in_etc_opens_the_copy() -> None:
    node = {**NODE, "/N/etc/passwd": "file", "/N/etc/ssl": "dir", "/N/etc/mtab": "-> /proc/mounts", "/run/munge": "dir"}
    lines = mounts(launch(node=node, volumes=(Volume(source="/run/munge", target="/etc/munge"),)).argv)
    at = lines.index("--tmpfs /etc")
    assert lines[at + 1 : at + 5] == [
        "--symlink /proc/mounts /etc/mtab",
        "--ro-bind /N/etc/passwd /etc/passwd",
        "--ro-bind /N/etc/ssl /etc/ssl",
        "--bind /run/munge /etc/munge",
    ]
    there = mounts(launch(node=node, volumes=(Volume(source="/data/file", target="/etc/passwd"),)).argv)
    assert "--tmpfs /etc" not in there and "--bind /data/file /etc/passwd" in there


@pytest.mark.parametrize("name", ["dev", "etc", "proc", "sys", "tmp"])
def test_what_an_image_lacks_or_has_as_a_link_is_made(name: str) -> None:
    image = {path: kind for path, kind in DEBIAN.items() if path != f"/{name}"}
    bare = launch(image=image, cwd="/tmp", environ={}).argv
    assert any(line.endswith(f" /{name}") and "bind" in line for line in mounts(bare))
    assert "--remount-ro /" in mounts(bare)
    if name != "tmp":
        odd = mounts(launch(image={**image, f"/{name}": "-> ../../home"}, cwd="/tmp", environ={}).argv)
        assert odd == mounts(bare), "a link of the image does not move the node's own directories"


def test_a_tmp_that_is_a_link() -> None:
    image = {**DEBIAN, "/tmp": "-> var/tmp", "/var/tmp": "dir"}
    lines = mounts(launch(image=image, cwd="/tmp", environ={}).argv)
    assert lines[0] == "--ro-bind /N/root /" and "--bind /tmp /var/tmp" in lines


def test_root_gets_no_devices_and_no_kernel_settings() -> None:
    lines = mounts(launch(uid=0, node={**NODE, "/proc/scsi": "dir"}).argv)
    assert "--dev /dev" in lines and "--dev-bind /dev /dev" not in lines
    assert "--bind /dev/shm /dev/shm" in lines
    assert "--ro-bind /proc/sys /proc/sys" in lines and "--ro-bind /proc/scsi /proc/scsi" in lines
    assert "--ro-bind /sys /sys" in lines


def test_a_target_behind_a_link_of_the_image_is_resolved_inside_the_image() -> None:
    image = {**DEBIAN, "/var/run": "-> /run", "/run": "dir"}
    lines = mounts(launch(image=image, volumes=(Volume(source="/run/munge.sock", target="/var/run/m.sock"),)).argv)
    assert "--bind /run/munge.sock /run/m.sock" in lines


def test_a_target_behind_a_link_of_a_volume_is_resolved_in_the_task_s_view() -> None:
    node = {**NODE, "/home/ada/work": "-> /scratch/ada", "/scratch/ada/run": "dir"}
    environ = {"HOME": "/home/ada", "SCRATCH": "/scratch/ada"}
    volume = Volume(source="/data/in", target="/home/ada/work/run")
    assert "--bind /data/in /scratch/ada/run" in mounts(launch(node=node, environ=environ, volumes=(volume,)).argv)


def test_links_that_climb_stay_in_the_image() -> None:
    assert resolve(TextTree({"/a": "-> ../../../b/c", "/b": "dir"}), "/a/d") == "/b/c/d"
    with pytest.raises(LaunchError):
        resolve(TextTree({"/a": "-> b", "/b": "-> /a"}), "/a/x")
    with pytest.raises(LaunchError):
        resolve(TextTree({"/a": "-> a/a"}), "/a")


@pytest.mark.parametrize(
    ("volume", "says"),
    [
        (Volume(source="/absent", target="/x"), "/absent does not exist"),
        (Volume(source="/data/dangling", target="/x"), "/data/dangling does not exist"),
        (Volume(source="/data/file", target="/usr/bin"), "/data/file is a file, and /usr/bin is a directory"),
        (Volume(source="/data/in", target="/usr/bin/bash"), "/data/in is a directory, and /usr/bin/bash is a file"),
        (Volume(source="/data/in", target="/usr/bin/bash/x"), "/usr/bin/bash is a file"),
        (Volume(source="/data/in", target="/home/ada/new"), "lies in another volume, at /home/ada"),
    ],
)
def test_volumes_that_cannot_be_mounted(volume: Volume, says: str) -> None:
    with pytest.raises(LaunchError) as caught:
        launch(node={**NODE, "/data/dangling": "-> nowhere"}, volumes=(volume,))
    assert says in caught.value.details and caught.value.hint and caught.value.exit_code == 125
    assert str(volume) in caught.value.brief


def test_a_volume_over_a_directory_takes_the_place_of_what_is_shown_unasked_in_it() -> None:
    lines = mounts(launch(volumes=(Volume(source="/data/in", target="/home"),)).argv)
    assert "--bind /data/in /home" in lines and not any(line.endswith("/home/ada") for line in lines)


def test_what_the_caller_asks_for_wins_over_the_configuration() -> None:
    config = {"volumes": ("/data/in:/mnt:ro", "/data/in:/opt")}
    lines = mounts(launch(config=config, volumes=(Volume(source="/scratch/ada", target="/mnt"),)).argv)
    assert "--bind /scratch/ada /mnt" in lines and "--bind /data/in /opt" in lines
    assert not any("ro-bind /data/in" in line for line in lines)


def test_the_site_s_policy_binds_what_users_ask_for_and_configure() -> None:
    policy = Policy(denied_sources=("/data",))
    with pytest.raises(PolicyError):
        launch(config={"policy": policy}, volumes=(Volume(source="/data/in", target="/x"),))
    with pytest.raises(PolicyError):
        launch(config={"policy": policy, "volumes": ("/data/in:/x",)})
    launch(config={"policy": policy, "volumes": ("/data/in:/x",), "from_site": frozenset(["/data/in:/x"])})


LINKED = {
    **NODE,
    "/mnt/data": "-> ../data",
    "/srv/deep/secret": "dir",
    "/srv/way": "-> /srv/deep",
    "/secret": "-> data",
}


@pytest.mark.parametrize(
    "source", ["/data", "/data/in", "/mnt/data/in", "/", "/srv", "/srv/deep", "/srv/way", "/secret"]
)
def test_a_denied_source_is_not_shown_by_its_parents_or_links(source: str) -> None:
    policy = Policy(denied_sources=("/secret", "/srv/way/secret"))
    with pytest.raises(PolicyError) as caught:
        launch(node=LINKED, config={"policy": policy}, volumes=(Volume(source=source, target="/x"),))
    assert "secret" in caught.value.details


def test_sources_may_be_allowed_by_a_linked_name() -> None:
    policy = Policy(volume_sources=("/secret",))
    launch(node=LINKED, config={"policy": policy}, volumes=(Volume(source="/data/in", target="/x"),))
    with pytest.raises(PolicyError):
        launch(node=LINKED, config={"policy": policy}, volumes=(Volume(source="/srv/deep", target="/x"),))


@pytest.mark.parametrize(
    "target", ["/usr/lib/site", "/usr/lib/site/x", "/usr", "/lib/site", "/current", "/data/usr/lib"]
)
def test_a_denied_target_is_not_covered_by_parents_or_links(target: str) -> None:
    image = {**DEBIAN, "/usr/lib/site": "dir", "/lib": "-> usr/lib", "/current": "-> usr", "/data": "dir", "/x": "exec"}
    node = {**NODE, "/data/in/usr": "-> /usr"}
    volumes = (Volume(source="/data/in", target="/data"), Volume(source="/scratch/ada", target=target))
    launch(("/x",), image=image, node=node, volumes=volumes)
    policy = Policy(denied_targets=("/usr/lib/site/",))
    with pytest.raises(PolicyError, match="scratch"):
        launch(("/x",), image=image, node=node, config={"policy": policy}, volumes=volumes)


def test_what_is_shown_unasked_keeps_to_the_policy() -> None:
    def shown(**rules: tuple[str, ...]) -> list[str]:
        return mounts(launch(cwd="/scratch/ada", config={"policy": Policy(**rules)}).argv)

    assert "--bind /scratch/ada /scratch/ada" in shown() and "--bind /home/ada /home/ada" in shown()
    hidden = shown(denied_sources=("/scratch", "/home/ada"))
    assert "--tmpfs /home/ada" in hidden and not any("/scratch" in line for line in hidden)
    assert not any(line.endswith("/scratch/ada") for line in shown(denied_targets=("/scratch",)))
    assert "--bind /home/ada /home/ada" in shown(volume_sources=("/data",)), "a home is no volume that was asked for"


def test_the_caller_s_directories() -> None:
    environ = {"HOME": "/home/ada", "SCRATCH": "/scratch/ada", "TMPDIR": "/tmp/job"}
    node = {**NODE, "/tmp/job": "dir", "/scratch/ada/run": "dir"}

    def shown(**more: Any) -> set[str]:
        lines = mounts(launch(environ=environ, node=node, cwd="/scratch/ada/run", **more).argv)
        return {line for line in lines if line.startswith(("--bind", "--tmpfs"))} - {
            "--bind /proc /proc",
            "--bind /sys /sys",
            "--tmpfs /home",
        }

    assert shown() == {"--bind /home/ada /home/ada", "--bind /tmp /tmp", "--bind /scratch/ada /scratch/ada"}
    assert shown(home=False) == {"--tmpfs /home/ada", "--bind /tmp /tmp", "--bind /scratch/ada /scratch/ada"}
    assert shown(config={"automatic": ("tmpdir", "cwd")}) == {
        "--tmpfs /home/ada",
        "--tmpfs /tmp",
        "--bind /tmp/job /tmp/job",
        "--bind /scratch/ada/run /scratch/ada/run",
    }
    # Where the server of a step keeps what its ranks read, that is seen whatever is configured.
    environ["PMIX_SERVER_TMPDIR"], node["/var/spool/slurmd/pmix.1.0"] = "/var/spool/slurmd/pmix.1.0/", "dir"
    assert "--bind /var/spool/slurmd/pmix.1.0 /var/spool/slurmd/pmix.1.0" in shown(config={"automatic": ()})
    # An empty home between /tmp and the current directory must not hide the latter.
    environ, node = {"HOME": "/tmp/ada"}, {**NODE, "/tmp/ada/run": "dir"}
    lines = mounts(launch(environ=environ, node=node, cwd="/tmp/ada/run", home=False).argv)
    assert [line for line in lines if "/tmp" in line] == [
        "--bind /tmp /tmp",
        "--tmpfs /tmp/ada",
        "--bind /tmp/ada/run /tmp/ada/run",
    ]
    with pytest.raises(ConfigError):
        shown(config={"automatic": ("pwd",)})


@pytest.mark.parametrize("cwd", ["/", "/usr/share/x", "/etc/x", "/proc/1", "/lib", "/var/lib"])
def test_a_cwd_that_would_hide_the_image_is_not_mounted(cwd: str) -> None:
    image = {**DEBIAN, "/var/lib/dpkg": "dir"}
    with_cwd = mounts(launch(cwd=cwd, image=image, node={**NODE, cwd: "dir"}).argv)
    assert with_cwd == mounts(launch(image=image).argv)


def test_only_root_has_capabilities_to_drop() -> None:
    assert "--cap-drop" not in launch().argv
    argv = launch(uid=0, is_admin=True).argv
    assert argv[argv.index("--cap-drop") + 1] == "ALL" and "--unshare-user" not in argv


def test_root_that_is_no_administrator_gets_a_user_namespace() -> None:
    assert "--unshare-user" in launch(uid=0).argv


def test_the_prefix_of_a_namespace_comes_first() -> None:
    assert launch(join=("/usr/bin/nsenter", "--")).argv[:3] == ("/usr/bin/nsenter", "--", "/usr/bin/bwrap")


def test_session_and_death_are_as_asked() -> None:
    assert not {"--new-session", "--die-with-parent"} & set(launch().argv)
    assert {"--new-session", "--die-with-parent"} <= set(launch(new_session=True, die_with_parent=True).argv)


def test_environment_precedence() -> None:
    env = launch(
        environ={"HOME": "/home/ada", "A": "host", "B": "host", "C": "host", "D": "host", "E": "host"},
        image_config=ImageConfig(env={"B": "image", "C": "image", "D": "image", "E": "image", "HOME": "/root"}),
        env_file={"C": "file", "D": "file", "E": "file"},
        env={"D": "env", "E": "env"},
        config={"env": {"E": "site"}},
    ).env
    assert [env[name] for name in "ABCDE"] == ["host", "image", "file", "env", "site"]
    assert env["HOME"] == "/home/ada"


def test_a_module_can_add_to_a_path() -> None:
    image = ImageConfig(env={"LD_LIBRARY_PATH": "/opt/lib", "A": "a"})
    config = {"env": {"LD_LIBRARY_PATH": "/mpich/lib:${LD_LIBRARY_PATH}", "B": "${A}${ABSENT}-${A", "A": "${A}2"}}
    result = launch(image_config=image, config=config)
    assert "/mpich/lib:/opt/lib" in result.argv
    assert (result.env["A"], result.env["B"]) == ("a2", "a-${A")


def test_variables_that_name_what_the_task_cannot_see_are_dropped() -> None:
    environ = {"HOME": "/home/ada", "SHELL": "/usr/bin/zsh", "XDG_RUNTIME_DIR": "/run/user/1", "TMPDIR": "/tmp"}
    assert launch(environ=environ).env.keys() == {"HOME", "PATH", "PWD", "TMPDIR"}
    assert launch(environ={**environ, "SHELL": "/bin/bash"}).env["SHELL"] == "/bin/bash"


def test_variables_that_name_host_files_do_not_leak() -> None:
    traps = {
        "PATH": "/host",
        "PYTHONPATH": "/host",
        "PYTHONHOME": "/host",
        "LD_PRELOAD": "/host.so",
        "VIRTUAL_ENV": "/v",
    }
    result = launch(environ={"HOME": "/home/ada", **traps})
    assert result.env["PATH"] == DEFAULT_PATH
    assert not (traps.keys() - {"PATH"}) & result.env.keys()
    assert "--setenv" not in result.argv


def test_passwords_of_registries_are_not_for_images() -> None:
    environ = {"HOME": "/home/ada", "UDI_USERNAME": "ada", "UDI_PASSWORD": "secret"}
    assert launch(environ=environ).env.keys() == {"HOME", "PATH", "PWD", "UDI_USERNAME"}
    assert launch(environ=environ, env={"UDI_PASSWORD": "on request"}).env["UDI_PASSWORD"] == "on request"


def test_loader_variables_of_the_image_do_not_reach_bubblewrap_itself() -> None:
    result = launch(image_config=ImageConfig(env={"LD_LIBRARY_PATH": "/opt/lib"}))
    assert "LD_LIBRARY_PATH" not in result.env
    at = result.argv.index("--setenv")
    assert result.argv[at + 1 : at + 3] == ("LD_LIBRARY_PATH", "/opt/lib")


def test_clearenv_keeps_who_and_where_one_is() -> None:
    environ = {"HOME": "/home/ada", "USER": "ada", "TERM": "xterm", "SECRET": "x"}
    env = launch(environ=environ, clearenv=True).env
    assert env == {"PATH": DEFAULT_PATH, "HOME": "/home/ada", "USER": "ada", "TERM": "xterm", "PWD": "/home/ada"}


def test_pwd_names_the_work_directory() -> None:
    environ = {"HOME": "/home/ada", "PWD": "/elsewhere", "OLDPWD": "/before"}
    for workdir, name in (("/var/lib", "/var/lib"), ("/var/../bin", "/usr/bin"), ("/bin", "/bin")):
        result = launch(environ=environ, workdir=workdir)
        assert (result.env["PWD"], chdir(result.argv)) == (name, name)
        assert "OLDPWD" not in result.env


def test_workdir() -> None:
    image = ImageConfig(workdir="/var/lib")
    assert chdir(launch(cwd="/home/ada").argv) == "/home/ada"
    assert chdir(launch(cwd="/usr/share", image_config=image).argv) == "/var/lib"
    assert chdir(launch(cwd="/usr/share", image_config=ImageConfig(workdir="/absent")).argv) == "/"
    assert chdir(launch(cwd="/usr/bin", image_config=image).argv) == "/usr/bin"
    assert chdir(launch(cwd="/scratch/ada").argv) == "/scratch/ada"
    assert chdir(launch(workdir="/var").argv) == "/var"
    assert chdir(launch(workdir="/scratch", cwd="/scratch/ada").argv) == "/scratch"
    for wrong in ("/absent", "var", "/usr/bin/bash"):
        with pytest.raises(LaunchError):
            launch(workdir=wrong)


def test_entrypoint_on_request_only() -> None:
    image = ImageConfig(entrypoint=("/entry", "-x"), cmd=("serve",))
    files = {**DEBIAN, "/entry": "exec", "/mine": "exec"}

    def tail(command: tuple[str, ...], entrypoint: bool | str) -> tuple[str, ...]:
        argv = launch(command, image=files, image_config=image, entrypoint=entrypoint).argv
        return argv[argv.index("--", argv.index("--chdir")) + 1 :]

    assert tail(("true",), False) == ("true",)
    assert tail(("ls",), True) == ("/entry", "-x", "ls")
    assert tail((), True) == ("/entry", "-x", "serve")
    assert tail(("ls",), "/mine") == ("/mine", "ls")
    with pytest.raises(LaunchError):
        tail((), False)


ELF = (
    # 64 bits, little-endian; one program header, PT_INTERP, at 64; the loader's name at 120
    b"\x7fELF\x02\x01".ljust(32, b"\0") + (64).to_bytes(8, "little").ljust(22, b"\0") + b"\x38\0\x01\0".ljust(10, b"\0")
    + b"\x03\0\0\0\0\0\0\0" + (120).to_bytes(8, "little") + bytes(16) + (14).to_bytes(8, "little") + bytes(16)
    + b"/lib64/ld.so\0"
).decode("latin-1")  # fmt: skip


@pytest.mark.parametrize(
    ("command", "kind", "says"),
    [
        ("absent", CommandNotFound, "in no directory of PATH"),
        ("", CommandNotFound, "in no directory of PATH"),
        ("/usr/bin/absent", CommandNotFound, "Nothing is at /usr/bin/absent"),
        ("./absent", CommandNotFound, "Nothing is at /home/ada/absent"),
        ("/home/bob/x", CommandNotFound, "Nothing is at /home/bob/x"),
        ("/usr", NotExecutable, "/usr is a directory"),
        ("plain", NotExecutable, "no permission"),
        ("./data.txt", NotExecutable, "no permission"),
        ("script", CommandNotFound, "needs the interpreter /usr/bin/perl"),
        ("program", CommandNotFound, "needs the loader /lib64/ld.so"),
    ],
)
def test_commands_that_cannot_be_started(command: str, kind: type[LaunchError], says: str) -> None:
    image = {
        **DEBIAN,
        "/usr/bin/plain": "file",
        "/usr/bin/script": "exec #!/usr/bin/perl -w\n",
        "/usr/bin/program": f"exec {ELF}",
    }
    with pytest.raises(kind) as caught:
        launch((command,), image=image, node={**NODE, "/home/ada/data.txt": "file"})
    assert says in caught.value.details and caught.value.hint
    assert caught.value.exit_code == {CommandNotFound: 127, NotExecutable: 126}[kind]


@pytest.mark.parametrize(
    "command",
    ["bash", "/bin/bash", "./run.sh", "../ada/run.sh", "tool", "/home/ada/tool", "script", "odd", "program", "first"],
)
def test_commands_that_can_be_started(command: str) -> None:
    image = {
        **DEBIAN,
        "/usr/lib64/ld.so": "exec",
        "/usr/bin/script": "exec #! /bin/bash\n",
        "/usr/bin/odd": "exec #!bash\n",  # which the kernel looks for in the current directory
        "/usr/bin/program": f"exec {ELF}",
        "/usr/local/bin/first": "file",
        "/usr/bin/first": "exec",
        "/usr/bin/tool": "-> /home/ada/tool",
    }
    node = {**NODE, "/home/ada/run.sh": "exec #!/bin/bash", "/home/ada/tool": "-> real", "/home/ada/real": "exec"}
    assert launch((command,), image=image, node=node).argv[-1] == command


def test_the_lease_is_passed_on() -> None:
    assert launch().pass_fds == (9,)


def test_the_run_record_names_what_will_run() -> None:
    built = launch(("bash", "-c", "secret"), config={"record_dir": "/r"}, by="parsl")
    assert built.record[0] == "/n/record.jsonl"
    line = json.loads(built.record[1] + "}")
    assert (line["by"], line["image"], line["backend"], line["program"]) == ("parsl", "sha256:ab", "kernel", "bash")
    assert launch(("bash",)).record[0] == ""


@pytest.mark.parametrize(
    ("rank", "more", "told"),
    [
        ({"PMI_RANK": "1"}, {}, True),
        ({"PMIX_RANK": "1"}, {"uid": 0}, True),
        ({"PMI_RANK": "1"}, {"uid": 0, "is_admin": True}, False),
        ({"PMI_RANK": "1"}, {"join": ("nsenter", "--user")}, False),
        ({}, {}, False),
    ],
)
def test_ranks_in_namespaces_of_their_own_are_told_not_to_read_memory(
    rank: dict[str, str], more: dict[str, Any], told: bool
) -> None:
    env = launch(environ={"HOME": "/home/ada", "UCX_TLS": "tcp,self", **rank}, **more).env
    assert (env.get("MPIR_CVAR_CH4_CMA_ENABLE") == "0") is told
    assert env["UCX_TLS"] == "tcp,self"  # the user's own
