"""The front's command line, as text: what Snakemake writes, what people write, and what is refused."""

from __future__ import annotations

import shlex

import pytest
from udi_snakemake.arguments import (
    Action,
    Bind,
    Help,
    Inspect,
    Pull,
    Request,
    Version,
    default_name,
    parse,
    parse_binds,
)

from udi_core.errors import UsageError


def words(line: str, **environ: str) -> Request:
    return parse(shlex.split(line), environ)


def action(line: str, **environ: str) -> Action:
    request = words(line, **environ)
    assert isinstance(request, Action)
    return request


def test_what_snakemake_9_writes_for_a_shell_rule() -> None:
    seen = action(
        " exec --home '/work/my run'  --bind '/home/u/.cache/snakemake/snakemake/source-cache'"
        " /work/my run/.snakemake/singularity/0f.simg".replace("my run/.", "my_run/.")
        + " bash -c 'set -euo pipefail;  echo \"$HOME\" > out'"
    )
    assert seen.verb == "exec"
    assert seen.home == ("/work/my run", "/work/my run")
    assert seen.image == "/work/my_run/.snakemake/singularity/0f.simg"
    assert seen.binds == (
        Bind(
            source="/home/u/.cache/snakemake/snakemake/source-cache",
            target="/home/u/.cache/snakemake/snakemake/source-cache",
        ),
    )
    assert seen.command == ("bash", "-c", 'set -euo pipefail;  echo "$HOME" > out')
    assert not seen.quiet


def test_what_snakemake_writes_for_a_script_in_a_shadow() -> None:
    seen = action(
        "--quiet --silent exec --home '/w' --nv --bind '/venv/site':'/mnt/snakemake_searchpaths/item_0'"
        " --bind '/src':'/mnt/snakemake_searchpaths/item_1' --pwd '/w/.snakemake/shadow/x' i.simg bash -c 'python s.py'"
    )
    assert seen.quiet
    assert seen.nv
    assert seen.pwd == "/w/.snakemake/shadow/x"
    assert [(bind.source, bind.target) for bind in seen.binds] == [
        ("/venv/site", "/mnt/snakemake_searchpaths/item_0"),
        ("/src", "/mnt/snakemake_searchpaths/item_1"),
    ]


def test_what_snakemake_writes_to_pull() -> None:
    assert words("pull --name 0f1e.simg docker://ghcr.io/lab/tool:2.1") == Pull(
        image="docker://ghcr.io/lab/tool:2.1", path="0f1e.simg"
    )


def test_what_the_coming_release_writes() -> None:
    assert words("pull /d/docker___bash.sif docker://bash") == Pull(image="docker://bash", path="/d/docker___bash.sif")
    seen = action("exec --env A=1,B=x,y --cwd '/w'  --bind '/t':'/t' --bind '/w':'/w' docker://bash bash -c 'true'")
    assert seen.env == {"A": "1", "B": "x,y"}
    assert seen.pwd == "/w"
    assert seen.image == "docker://bash"


@pytest.mark.parametrize("line", ["--version", "version", "-q --version"])
def test_version(line: str) -> None:
    assert words(line) == Version()


@pytest.mark.parametrize(
    ("line", "topic"), [("", ""), ("--help", ""), ("-h", ""), ("help pull", "pull"), ("exec --help", "exec")]
)
def test_help(line: str, topic: str) -> None:
    assert words(line) == Help(topic)


@pytest.mark.parametrize("form", ["-B /a:/b", "-B/a:/b", "-B=/a:/b", "--bind /a:/b", "--bind=/a:/b"])
def test_forms_of_a_value(form: str) -> None:
    assert action(f"exec {form} i c").binds == (Bind(source="/a", target="/b"),)


def test_switches_combine_and_take_a_value() -> None:
    seen = action("exec -ec --nv=false --no-home=true i c")
    assert (seen.cleanenv, seen.contain, seen.nv, seen.no_home) == (True, True, False, True)
    assert action("exec -eB/a i c").binds == (Bind(source="/a", target="/a"),)


def test_containall_is_contain_and_cleanenv() -> None:
    seen = action("exec -C i c")
    assert (seen.cleanenv, seen.contain) == (True, True)


def test_flags_end_at_the_image() -> None:
    assert action("exec --nv i ls --overlay -B x").command == ("ls", "--overlay", "-B", "x")
    assert action("exec --nv -- i ls").image == "i"


def test_run_and_shell_need_no_command() -> None:
    assert action("run i").command == ()
    assert action("shell --shell /bin/zsh i").shell == "/bin/zsh"
    assert action("shell -s /bin/zsh i").shell == "/bin/zsh"


@pytest.mark.parametrize(
    ("text", "binds"),
    [
        ("/a", [("/a", "/a", False)]),
        ("/a:/b:ro", [("/a", "/b", True)]),
        ("/a:/b:rw,/c", [("/a", "/b", False), ("/c", "/c", False)]),
        ("/a:/b:ro,rw", [("/a", "/b", False)]),
        (r"/a\:1:/b\,2", [("/a:1", "/b,2", False)]),
        ("/a::ro", [("/a", "/a", True)]),
    ],
)
def test_binds(text: str, binds: list[tuple[str, str, bool]]) -> None:
    assert [(bind.source, bind.target, bind.read_only) for bind in parse_binds(text)] == binds


@pytest.mark.parametrize("text", [":/b", "/a:/b:ro:x", "/a:/b:nosuid"])
def test_malformed_binds(text: str) -> None:
    with pytest.raises(UsageError, match="is not a bind"):
        parse_binds(text)


def test_environment_gives_flags_and_the_command_line_wins() -> None:
    seen = action(
        "exec --pwd /mine -B /c i cmd",
        SINGULARITY_BIND="/a",
        APPTAINER_BIND="/b",
        SINGULARITY_NV="1",
        APPTAINER_PWD="/theirs",
        APPTAINER_ENV="A=1",
        APPTAINER_CLEANENV="0",
    )
    assert [bind.source for bind in seen.binds] == ["/b", "/c"]
    assert seen.nv
    assert not seen.cleanenv
    assert seen.pwd == "/mine"
    assert seen.env == {"A": "1"}


def test_quiet_before_and_behind_the_verb() -> None:
    assert action("--silent exec i c").quiet
    assert action("exec --quiet i c").quiet


@pytest.mark.parametrize("line", ["exec --unheard i c", "--unheard exec i c", "exec -X i c", "pull --unheard x"])
def test_unknown_flag_names_what_is_supported(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        words(line)
    assert "UDI does not know" in caught.value.brief
    assert "Supported are:" in caught.value.details
    assert "--" in caught.value.details.partition("Supported are:")[2]


@pytest.mark.parametrize(
    ("line", "way_out"),
    [
        ("exec --overlay f i c", "--writable-tmpfs"),
        ("exec --writable i c", "--bind"),
        ("exec --fakeroot i c", "where you are root"),
        ("build x.sif x.def", "docker-archive:FILE"),
        ("instance start i x", "exec"),
    ],
)
def test_refusals_say_what_to_do_instead(line: str, way_out: str) -> None:
    with pytest.raises(UsageError) as caught:
        words(line)
    assert way_out in str(caught.value)


def test_refused_in_the_environment_too() -> None:
    with pytest.raises(UsageError, match="overlay"):
        words("exec i c", SINGULARITY_OVERLAY="x.img")
    with pytest.raises(UsageError, match="WRITABLE"):
        words("exec i c", APPTAINER_WRITABLE="true")
    action("exec i c", APPTAINER_WRITABLE="false")


@pytest.mark.parametrize(
    "line",
    ["exec", "exec i", "shell", "pull", "pull a b c", "exec --bind", "exec --env 1A=x i c", "exec --nv=maybe i c"],
)
def test_incomplete_command_lines(line: str) -> None:
    with pytest.raises(UsageError):
        words(line)


def test_pull_forms() -> None:
    assert words("pull --dir /d docker://bash") == Pull(image="docker://bash", path="/d/bash_latest.sif")
    assert words("pull --dir /d --name x.sif --force docker://bash") == Pull(
        image="docker://bash", path="/d/x.sif", force=True
    )
    assert words("pull --arch arm64 docker://bash") == Pull(image="docker://bash", architecture="arm64")
    assert default_name("docker://ghcr.io/lab/tool:2.1@sha256:" + "0" * 64) == "tool_2.1.sif"


def test_inspect() -> None:
    assert words("inspect i") == Inspect(image="i")
    assert words("inspect --json -e i") == Inspect(image="i", json=True, parts=("environment",))
    assert words("inspect --all i") == Inspect(image="i", parts=("labels", "environment", "runscript"))
