"""The bubblewrap command line, as text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from udi_core.config import Config
from udi_core.errors import LaunchError
from udi_core.manifest import ImageConfig
from udi_core.mount import MountedImage
from udi_core.sandbox import DEFAULT_PATH, Host, Launch, LaunchSpec, build, resolve
from udi_core.volumes import Volume


class TextTree:
    """A file tree written as ``{path: "dir" | "file" | "-> target"}``; parents need not be named."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = {"/": "dir"}
        for path, kind in entries.items():
            parts = path.strip("/").split("/")
            for depth in range(1, len(parts)):
                self.entries.setdefault("/" + "/".join(parts[:depth]), "dir")
            self.entries[path] = kind

    def kind(self, path: str) -> str:
        kind = self.entries.get(path.rstrip("/") or "/", "")
        return "link" if kind.startswith("-> ") else kind

    def readlink(self, path: str) -> str:
        return self.entries[path].removeprefix("-> ")

    def names(self, path: str) -> tuple[str, ...]:
        prefix = path.rstrip("/") + "/"
        return tuple(sorted({p[len(prefix) :].partition("/")[0] for p in self.entries if p.startswith(prefix)} - {""}))


DEBIAN = {
    **{f"/{name}": "dir" for name in ("dev", "etc", "home", "proc", "root", "sys", "tmp", "usr/bin", "var/lib")},
    "/bin": "-> usr/bin",
    "/lib64": "-> usr/lib64",
    "/usr/bin/bash": "file",
}
NODE = {"/home/ada": "dir", "/tmp": "dir", "/scratch/ada": "dir", "/data/in": "dir", "/run/munge.sock": "file"}


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
    **spec: Any,
) -> Launch:
    stored = cast(Any, SimpleNamespace(config=image_config or ImageConfig()))
    mounted = MountedImage(stored, "/N/root", join, 9, "kernel", "/N/etc", "/N/root", (9,))
    host = Host(
        image=TextTree(image),
        node=TextTree(node),
        cwd=cwd,
        uid=uid,
        environ={"HOME": "/home/ada"} if environ is None else environ,
        bwrap="/usr/bin/bwrap",
    )
    return build(
        LaunchSpec(command=command, **spec), mounted, Config(store="/s", node_dir="/n", **(config or {})), host
    )


def mounts(argv: tuple[str, ...]) -> list[str]:
    """``--option source target`` triples and ``--option path`` pairs as lines."""
    arity = {"--ro-bind": 2, "--bind": 2, "--dev-bind": 2, "--symlink": 2, "--tmpfs": 1, "--remount-ro": 1}
    words = iter(argv[: argv.index("--chdir")])
    return [" ".join([word, *itertools.islice(words, arity[word])]) for word in words if word in arity]


def chdir(argv: tuple[str, ...]) -> str:
    return argv[argv.index("--chdir") + 1]


def test_an_image_that_has_every_mount_point_is_one_mount() -> None:
    lines = mounts(launch(cwd="/tmp", home=False).argv)
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
    assert "--remount-ro /home" in lines


def test_a_missing_top_level_directory_opens_the_root() -> None:
    lines = mounts(launch(volumes=(Volume(source="/data/in", target="/data/in"),)).argv)
    assert "--ro-bind /N/root /" not in lines
    assert "--symlink usr/bin /bin" in lines and "--ro-bind /N/root/usr /usr" in lines
    assert "--bind /data/in /data/in" in lines
    assert "--remount-ro /" in lines


def test_a_target_behind_a_link_of_the_image_is_resolved_inside_the_image() -> None:
    image = {**DEBIAN, "/var/run": "-> /run", "/run": "dir"}
    lines = mounts(launch(image=image, volumes=(Volume(source="/run/munge.sock", target="/var/run/m.sock"),)).argv)
    assert "--bind /run/munge.sock /run/m.sock" in lines


def test_links_that_climb_stay_in_the_image() -> None:
    assert resolve(TextTree({"/a": "-> ../../../b/c", "/b": "dir"}), "/a/d") == "/b/c/d"
    with pytest.raises(LaunchError):
        resolve(TextTree({"/a": "-> b", "/b": "-> /a"}), "/a/x")


def test_a_volume_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(LaunchError) as caught:
        launch(volumes=(Volume(source="/absent", target="/x"),))
    assert "/absent" in caught.value.details and caught.value.exit_code == 125


def test_only_root_has_capabilities_to_drop() -> None:
    assert "--cap-drop" not in launch().argv
    argv = launch(uid=0).argv
    assert argv[argv.index("--cap-drop") + 1] == "ALL"


def test_the_prefix_of_a_namespace_comes_first() -> None:
    assert launch(join=("/usr/bin/nsenter", "--")).argv[:3] == ("/usr/bin/nsenter", "--", "/usr/bin/bwrap")


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


def test_loader_variables_of_the_image_do_not_reach_bubblewrap_itself() -> None:
    result = launch(image_config=ImageConfig(env={"LD_LIBRARY_PATH": "/opt/lib"}))
    assert "LD_LIBRARY_PATH" not in result.env
    at = result.argv.index("--setenv")
    assert result.argv[at + 1 : at + 3] == ("LD_LIBRARY_PATH", "/opt/lib")


def test_clearenv_keeps_who_and_where_one_is() -> None:
    environ = {"HOME": "/home/ada", "USER": "ada", "TERM": "xterm", "SECRET": "x"}
    env = launch(environ=environ, clearenv=True).env
    assert env == {"PATH": DEFAULT_PATH, "HOME": "/home/ada", "USER": "ada", "TERM": "xterm"}


def test_workdir() -> None:
    image = ImageConfig(workdir="/var/lib")
    assert chdir(launch(cwd="/home/ada").argv) == "/home/ada"
    assert chdir(launch(cwd="/usr/share", image_config=image).argv) == "/var/lib"
    assert chdir(launch(cwd="/usr/share", image_config=ImageConfig(workdir="/absent")).argv) == "/"
    assert chdir(launch(cwd="/usr/bin", image_config=image).argv) == "/usr/bin"
    assert chdir(launch(cwd="/scratch/ada").argv) == "/scratch/ada"
    assert chdir(launch(workdir="/var").argv) == "/var"
    with pytest.raises(LaunchError):
        launch(workdir="/absent")


def test_entrypoint_on_request_only() -> None:
    image = ImageConfig(entrypoint=("/entry", "-x"), cmd=("serve",))

    def tail(command: tuple[str, ...], entrypoint: bool | str) -> tuple[str, ...]:
        argv = launch(command, image_config=image, entrypoint=entrypoint).argv
        return argv[argv.index("--", argv.index("--chdir")) + 1 :]

    assert tail(("ls",), False) == ("ls",)
    assert tail(("ls",), True) == ("/entry", "-x", "ls")
    assert tail((), True) == ("/entry", "-x", "serve")
    assert tail(("ls",), "/mine") == ("/mine", "ls")
    with pytest.raises(LaunchError):
        tail((), False)


def test_the_lease_is_passed_on() -> None:
    assert launch().pass_fds == (9,)
