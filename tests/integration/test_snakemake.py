"""Unmodified Snakefiles with ``container:``, run by the real Snakemake in real images through the front."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import images, oci, sif, workflows
from tests.support.registry import Registry, running_registry
from tests.support.workflows import Workflow, front

pytest.importorskip("snakemake")
pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry")

env = workflows.module_environment
workflow = workflows.in_environment


@pytest.fixture(scope="module")
def image(push: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return workflows.push_workflow_image(push, tmp_path_factory.mktemp("image") / "layout", "snakemake/main")


@pytest.fixture(scope="module")
def trixie(push: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trixie") / "layout"
    return workflows.push_workflow_image(push, path, "snakemake/trixie", "trixie")


class TestRules:
    """Each way in which a rule says what to do."""

    def test_shell_rules_of_two_images_and_of_none(self, workflow: Workflow, image: str, trixie: str) -> None:
        workflow.write(
            f"""
            container: "{image}"

            rule all:
                input: "a.txt", "b.txt", "c.txt", "d.txt"
            rule a:
                output: "a.txt"
                shell: "cat /opt/marker > {{output}}; python -c 'import sys; print(sys.version_info[1])' >> {{output}}"
            rule b:
                output: "b.txt"
                container: "{trixie}"
                shell: "python -c 'import sys; print(sys.version_info[1])' > {{output}}"
            rule c:
                output: "c.txt"
                container: None
                shell: "test ! -e /opt/marker && test ! -e /.singularity.d && which snakemake > {{output}}"
            rule d:
                input: "a.txt", "b.txt"
                output: "d.txt"
                threads: 2
                shell: "fit --threads $OMP_NUM_THREADS {{input}} > {{output}}"
            """
        )
        workflow.run()
        assert workflow.read("a.txt") == "the image's file\n11\n"
        assert workflow.read("b.txt") == "13\n"
        assert workflow.read("c.txt").strip().endswith("snakemake")
        # Snakemake's own OMP_NUM_THREADS wins over the image's 99, as with the real program.
        assert workflow.read("d.txt") == "fitted by the image: --threads 2 a.txt b.txt\n"

    def test_scripts_in_python_and_bash(self, workflow: Workflow, image: str, trixie: str) -> None:
        workflow.write(
            f"""
            rule all:
                input: "a.txt", "b.txt", "c.txt"
            rule a:
                output: "a.txt"
                params: word="hello", numbers=[1, 2]
                container: "{image}"
                script: "scripts/a.py"
            rule b:
                input: "a.txt"
                output: "b.txt"
                log: "logs/b.log"
                container: "{trixie}"
                script: "scripts/a.py"
            rule c:
                input: "a.txt"
                output: "c.txt"
                container: "{image}"
                script: "scripts/c.sh"
            """
        )
        workflow.write("VALUE = 'imported'\n", "scripts/helper.py")
        workflow.write(
            """
            import sys
            import helper
            with open(snakemake.output[0], "w") as file:
                print(sys.executable, sys.version_info[1], helper.VALUE, dict(snakemake.params), file=file)
                print(list(snakemake.input), snakemake.rule, snakemake.wildcards, open("/opt/marker").read(), file=file)
            """,
            "scripts/a.py",
        )
        workflow.write('cat "${snakemake_input[0]}" /opt/marker > "${snakemake_output[0]}"\n', "scripts/c.sh")
        workflow.run()
        first, second, *_ = workflow.read("a.txt").splitlines()
        assert first == "/usr/bin/python 11 imported {'word': 'hello', 'numbers': [1, 2]}"
        assert second.startswith("[] a")
        assert workflow.read("b.txt").startswith("/usr/bin/python 13 imported")
        assert workflow.read("c.txt") == workflow.read("a.txt") + "the image's file\n"

    def test_run_is_on_the_host_and_its_shell_in_the_image(self, workflow: Workflow, image: str) -> None:
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                container: "{image}"
                run:
                    import os, sys
                    assert not os.path.exists("/opt/marker")
                    shell("cat /opt/marker > {{output}}")
            """
        )
        workflow.run()
        assert workflow.read("a.txt") == "the image's file\n"

    def test_local_wrapper(self, workflow: Workflow, image: str) -> None:
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                container: "{image}"
                wrapper: "file:{workflow.directory}/wrappers/fit"
            """
        )
        workflow.write(
            """
            from snakemake.shell import shell
            shell("fit wrapped > {snakemake.output}")
            """,
            "wrappers/fit/wrapper.py",
        )
        workflow.write("channels: []\ndependencies: []\n", "wrappers/fit/environment.yaml")
        workflow.run()
        assert workflow.read("a.txt") == "fitted by the image: wrapped\n"

    def test_shadow_rules_leave_nothing_behind(self, workflow: Workflow, image: str) -> None:
        workflow.write("input\n", "in.txt")
        rules = "".join(
            f"""
rule {kind}:
    input: "in.txt"
    output: "{kind}.txt"
    shadow: "{kind}"
    container: "{image}"
    shell: "pwd > junk-{kind}; cat in.txt junk-{kind} /opt/marker > {{output}}"
"""
            for kind in ("minimal", "shallow", "full", "copy-minimal")
        ).replace("rule copy-minimal", "rule copy_minimal")
        workflow.write('rule all:\n    input: "minimal.txt", "shallow.txt", "full.txt", "copy-minimal.txt"\n' + rules)
        workflow.run()
        for kind in ("minimal", "shallow", "full", "copy-minimal"):
            first, where, marker = workflow.read(f"{kind}.txt").splitlines()
            assert (first, marker) == ("input", "the image's file")
            assert "/.snakemake/shadow/" in where
        assert not list(workflow.directory.glob("junk*"))

    def test_a_shell_command_that_is_too_long_for_an_argument(self, workflow: Workflow, image: str) -> None:
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                params: long="x" * 200_000
                container: "{image}"
                shell: "printf %s {{params.long}} | wc -c > {{output}}; cat /opt/marker >> {{output}}"
            """
        )
        workflow.run()
        assert workflow.read("a.txt").split() == ["200000", "the", "image's", "file"]

    def test_containerized_workflows_and_pipes_and_benchmarks(self, workflow: Workflow, image: str) -> None:
        workflow.write(
            f"""
            containerized: "{image}"
            rule all:
                input: "b.txt"
            rule a:
                output: pipe("a.pipe")
                shell: "cat /opt/marker > {{output}}"
            rule b:
                input: "a.pipe"
                output: "b.txt"
                benchmark: "b.bench"
                shell: "sleep 0.3; cat {{input}} > {{output}}"
            """
        )
        workflow.run()
        assert workflow.read("b.txt") == "the image's file\n"
        assert float(workflow.read("b.bench").splitlines()[1].split()[0]) >= 0.3

    def test_source_files_storage_and_the_temporary_directory(
        self, workflow: Workflow, image: str, tmp_path: Path
    ) -> None:
        pytest.importorskip("snakemake_storage_plugin_http")
        import functools
        import http.server
        import threading

        served = tmp_path / "served"
        served.mkdir()
        (served / "page.txt").write_text("stored far away\n")

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        scratch = tmp_path / "scratch"
        scratch.mkdir()
        workflow.write("from the source cache\n", "data/source.txt")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served)) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            workflow.write(
                f"""
                rule a:
                    input: storage.http("http://127.0.0.1:{server.server_port}/page.txt")
                    output: "a.txt"
                    params: source=workflow.source_path("data/source.txt")
                    resources: tmpdir="{scratch}"
                    container: "{image}"
                    shell: "cat {{input}} {{params.source}} > {{output}}; echo $TMPDIR > $TMPDIR/seen"
                """
            )
            workflow.run("--default-storage-provider", "none")
            server.shutdown()
        assert workflow.read("a.txt") == "stored far away\nfrom the source cache\n"
        assert (scratch / "seen").read_text().strip() == str(scratch)

    def test_images_by_wildcard_function_and_config(self, workflow: Workflow, image: str, trixie: str) -> None:
        workflow.write(
            f"""
            NAMES = {{"main": "{image}", "trixie": "{trixie}"}}
            rule all:
                input: expand("{{name}}.txt", name=NAMES), "config.txt"
            rule a:
                output: "{{name,main|trixie}}.txt"
                container: lambda wildcards: NAMES[wildcards.name]
                shell: ". /etc/os-release; echo $VERSION_CODENAME > {{output}}"
            rule b:
                output: "config.txt"
                container: config["image"]
                shell: ". /etc/os-release; echo $VERSION_CODENAME > {{output}}"
            """
        )
        workflow.run("--config", f"image={trixie}")
        assert [workflow.read(f"{name}.txt") for name in ("main", "trixie", "config")] == [
            "bookworm\n",
            "trixie\n",
            "trixie\n",
        ]

    def test_local_image_files(self, workflow: Workflow, env: dict[str, str], image: str) -> None:
        udi = [sys.executable, "-m", "udi_core"]
        subprocess.run([*udi, "pull", "--quiet", image], env=env, check=True, capture_output=True)
        path = subprocess.run([*udi, "path", image], env=env, check=True, capture_output=True, text=True).stdout.strip()
        (workflow.directory / "tool.squashfs").write_bytes(Path(path).read_bytes())
        workflow.write(
            """
            rule a:
                output: "a.txt"
                container: "tool.squashfs"
                shell: "cat /opt/marker > {output}"
            """
        )
        workflow.run()
        assert workflow.read("a.txt") == "the image's file\n"

    def test_apptainer_args(self, workflow: Workflow, image: str, tmp_path: Path) -> None:
        data = tmp_path / "data"
        data.mkdir()
        (data / "table").write_text("bound\n")
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                container: "{image}"
                shell: "cat /data/table > {{output}}; echo $WORD ${{{{MINE-}}}} >> {{output}}; ! touch /data/new"
            """
        )
        workflow.run("--apptainer-args", f"--bind {data}:/data:ro --env WORD='two words' --cleanenv --nv", MINE="host")
        assert workflow.read("a.txt") == "bound\ntwo words\n"
        assert os.listdir(data) == ["table"]


class TestIsolation:
    """What the fakes that run on the host would also pass, and what only a container passes."""

    def test_the_rule_sees_the_images_files_and_not_the_hosts(self, workflow: Workflow, image: str) -> None:
        bwrap = "/usr/bin/bwrap"
        assert os.path.exists(bwrap), "a program of the host that the image does not have"
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                container: "{image}"
                shell:
                    "test -e /opt/marker; test ! -e {bwrap}; "
                    "test -d /.singularity.d; test -e /singularity; test -n \\"$APPTAINER_CONTAINER\\"; "
                    "test \\"$SINGULARITY_CONTAINER\\" = \\"$APPTAINER_CONTAINER\\"; test $FLAVOUR = image; "
                    "test \\"$HOME\\" = \\"$PWD\\"; touch {{output}}"
            """
        )
        workflow.run()

    def test_writes_outside_bound_paths_are_refused(self, workflow: Workflow, image: str) -> None:
        places = ["/opt/new", "/new", "/usr/new", "/etc/new", "/opt/marker", "/.singularity.d/new", "/var/new"]
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                container: "{image}"
                shell: "for place in {" ".join(places)}; do ! (echo x > $place) 2>> {{output}} || exit 3; done"
            """
        )
        workflow.run()
        assert workflow.read("a.txt").count("Read-only file system") + workflow.read("a.txt").count("denied") == len(
            places
        )
        assert not any(os.path.exists(place) for place in places if place != "/opt/marker")

    def test_the_hosts_environment_passes(self, workflow: Workflow, image: str) -> None:
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                container: "{image}"
                shell: "echo $MINE; echo $ODD; echo $INJECTED; echo $PATH; exec > /dev/null; env > {{output}}"
            """
        )
        done = workflow.run(MINE="from the host", ODD="a 'b' $c", APPTAINERENV_INJECTED="injected", FLAVOUR="host")
        seen = dict(line.split("=", 1) for line in workflow.read("a.txt").splitlines() if "=" in line)
        assert seen["MINE"] == "from the host"
        assert seen["ODD"] == "a 'b' $c"
        assert seen["INJECTED"] == "injected"
        assert seen["FLAVOUR"] == "host", done.stdout
        assert sys.prefix not in seen["PATH"]

    def test_the_task_has_no_privileges(self, workflow: Workflow, image: str) -> None:
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                container: "{image}"
                shell: "cat /proc/self/status > {{output}}; id -u >> {{output}}"
            """
        )
        workflow.run()
        text = workflow.read("a.txt")
        assert "CapEff:\t0000000000000000" in text
        assert "NoNewPrivs:\t1" in text
        assert text.splitlines()[-1] == str(os.getuid())


class TestFailures:
    def test_a_failing_rule_fails_and_its_output_is_removed(self, workflow: Workflow, image: str) -> None:
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                container: "{image}"
                shell: "touch {{output}}; exit 7"
            """
        )
        done = workflow.run(check=False)
        assert done.returncode == 1
        assert "exit status 7" in done.stdout
        assert not (workflow.directory / "a.txt").exists()

    @pytest.mark.parametrize(
        ("reference", "said"),
        [
            ("docker://{host}/snakemake/absent:1", "snakemake/absent"),
            ("library://lab/tool:1", "UDI does not know library:"),
            ("docker://{host}/Snake/Make", "upper-case"),
        ],
    )
    def test_an_image_that_cannot_be_had_is_said_once_and_clearly(
        self, workflow: Workflow, registry: Registry, reference: str, said: str
    ) -> None:
        image = reference.format(host=registry.host)
        workflow.write(f'rule a:\n    output: "a.txt"\n    container: "{image}"\n    shell: "true"\n')
        done = workflow.run(check=False)
        assert done.returncode == 1
        assert "Failed to pull singularity image" in done.stdout
        assert said in done.stdout
        assert "Traceback" not in done.stdout

    def test_an_unknown_flag_is_a_loud_error(self, workflow: Workflow, image: str) -> None:
        workflow.write(f'rule a:\n    output: "a.txt"\n    container: "{image}"\n    shell: "touch {{output}}"\n')
        done = workflow.run("--apptainer-args", "--overlay x.img", check=False)
        assert done.returncode == 1
        assert "--overlay cannot be honoured" in done.stdout
        assert "--writable-tmpfs" in done.stdout

    def test_a_killed_front_takes_its_program_with_it(self, workflow: Workflow, image: str) -> None:
        workflow.write(
            f'rule a:\n    output: "a.txt"\n    container: "{image}"\n    shell: "echo $$ > pid; exec sleep 97"\n'
        )
        running = workflow.start()
        try:
            pid = wait_for(lambda: (workflow.directory / "pid").exists() and workflow.read("pid").strip())
            assert b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
            front_pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            os.kill(front_pid, 9)
            wait_for(lambda: not Path(f"/proc/{pid}").exists())
        finally:
            running.terminate()
            running.wait(timeout=30)


def wait_for(condition: Callable[[], object], timeout: float = 60) -> object:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


class TestSwitch:
    """The opt-in, and what happens without it."""

    @pytest.fixture
    def real(self, tmp_path: Path) -> Path:
        path = tmp_path / "real" / "apptainer"
        path.parent.mkdir()
        path.write_text(
            "#!/bin/sh\n"
            'case "$*" in *--version*) echo "apptainer version 1.3.0";;\n'
            f"pull*) echo pulled >> {tmp_path}/calls; touch $3;; *) echo exec >> {tmp_path}/calls;; esac\n"
        )
        path.chmod(0o755)
        (path.parent / "singularity").symlink_to("apptainer")  # what Snakemake 8 asks for
        return path.parent

    def test_a_real_apptainer_is_not_shadowed_without_the_switch(
        self, workflow: Workflow, image: str, real: Path, tmp_path: Path
    ) -> None:
        workflow.write(f'rule a:\n    output: touch("a.txt")\n    container: "{image}"\n    shell: "true"\n')
        path = f"{real}:{workflow.env['PATH']}"
        workflow.run(PATH=path, UDI_SNAKEMAKE="")
        assert (tmp_path / "calls").read_text() == "pulled\nexec\n"

    def test_with_the_switch_it_is_ours(self, workflow: Workflow, image: str, real: Path, tmp_path: Path) -> None:
        workflow.write(
            f'rule a:\n    output: "a.txt"\n    container: "{image}"\n    shell: "cat /opt/marker > {{output}}"\n'
        )
        workflow.run(PATH=f"{real}:{workflow.env['PATH']}")
        assert workflow.read("a.txt") == "the image's file\n"
        assert not (tmp_path / "calls").exists()

    def test_activation_by_udi_env(self, workflow: Workflow, image: str) -> None:
        workflow.write(
            f'rule a:\n    output: "a.txt"\n    container: "{image}"\n    shell: "cat /opt/marker > {{output}}"\n'
        )
        code = f'eval "$({sys.executable} -m udi_core env snakemake)" && exec "$@"'
        env = {key: value for key, value in workflow.env.items() if key != "UDI_SNAKEMAKE"}
        done = subprocess.run(
            ["sh", "-c", code, "sh", *workflow.argv()], cwd=workflow.directory, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert workflow.read("a.txt") == "the image's file\n"


class TestFront:
    """The front by itself, as people type it."""

    @pytest.fixture
    def pointer(self, env: dict[str, str], image: str, tmp_path: Path) -> str:
        done = front(env, ["pull", "--name", "x.sif", image], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return str(tmp_path / "x.sif")

    def test_pull_is_idempotent_and_force_is_not(self, env: dict[str, str], image: str, pointer: str) -> None:
        before = os.stat(pointer)
        assert front(env, ["pull", pointer, image]).returncode == 0
        assert os.stat(pointer).st_ino == before.st_ino
        assert front(env, ["pull", "--force", pointer, image]).returncode == 0
        assert os.stat(pointer).st_ino != before.st_ino
        document = json.loads(Path(pointer).read_text())
        assert document["digest"].startswith("sha256:")

    def test_run_shell_and_inspect(self, env: dict[str, str], image: str, pointer: str) -> None:
        assert front(env, ["run", pointer, "cat", "/opt/marker"]).stdout == "the image's file\n"
        assert front(env, ["shell", pointer, "-c", "echo $FLAVOUR"]).stdout == "image\n"
        labels = front(env, ["inspect", pointer]).stdout
        assert "udi.digest: sha256:" in labels
        shown = json.loads(front(env, ["inspect", "--json", "--all", image]).stdout)
        assert shown["udi"]["reference"].endswith("snakemake/main:latest")
        assert "FLAVOUR" in json.dumps(shown["data"]["attributes"]["environment"])

    def test_exit_status_and_standard_streams_are_the_programs(self, env: dict[str, str], pointer: str) -> None:
        done = subprocess.run(
            [
                os.path.join(workflows.front_directory(), "apptainer"),
                "exec",
                pointer,
                "sh",
                "-c",
                "cat; echo e >&2; exit 9",
            ],
            env={**env, "UDI_PYTHON": sys.executable},
            input="typed",
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr, done.returncode) == ("typed", "e\n", 9)

    def test_pwd_env_file_and_no_home(self, env: dict[str, str], pointer: str, tmp_path: Path) -> None:
        (tmp_path / "vars").write_text("A=1\nB='two'\n")
        done = front(
            env,
            ["exec", "--cwd", "/opt", "--env-file", "vars", "--env", "B=three", pointer, "sh", "-c", "pwd; echo $A $B"],
            cwd=tmp_path,
        )
        assert done.stdout == "/opt\n1 three\n"

    def test_what_the_environment_says(self, env: dict[str, str], image: str, pointer: str, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(f"{name}\n")
        asked = {
            "APPTAINER_BIND": f"{tmp_path}/one:/data,{tmp_path}/two:/more:ro",
            "SINGULARITY_BIND": "/nonexistent:/data",  # the other one wins
            "APPTAINER_ENV": "A=1,B=2",
            "SINGULARITY_CWD": "/data",
            "SINGULARITYENV_C": "3",
        }
        word = "pwd; cat /data/file /more/file; echo $A $B $C; ! touch /more/new 2>&-"
        done = front({**env, **asked}, ["exec", "--env", "B=two", pointer, "sh", "-c", word], cwd=tmp_path)
        assert done.stdout.split() == ["/data", "one", "two", "1", "two", "3"], done.stderr
        # The store goes where the real program's cache would go, and the pointer says so.
        cached = {**env, "APPTAINER_CACHEDIR": str(tmp_path / "cache")}
        del cached["UDI_STORE"]
        assert front(cached, ["pull", "y.sif", image], cwd=tmp_path).returncode == 0
        assert (tmp_path / "cache" / "udi" / "images").is_dir()
        assert front(env, ["exec", "y.sif", "cat", "/opt/marker"], cwd=tmp_path).stdout == "the image's file\n"

    def test_user_name_and_password_for_a_registry(
        self, env: dict[str, str], registry: Registry, image: str, workflow: Workflow, tmp_path: Path
    ) -> None:
        bcrypt = pytest.importorskip("bcrypt")
        users = tmp_path / "htpasswd"
        users.write_text("me:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode() + "\n")
        auth = {"auth": {"htpasswd": {"realm": "test", "path": str(users)}}}
        with running_registry(registry.storage, configuration=auth) as closed:
            private = image.replace(registry.host, closed.host)
            known = {**env, "APPTAINER_DOCKER_USERNAME": "me", "APPTAINER_DOCKER_PASSWORD": "secret"}
            refused = front(env, ["pull", "x.sif", private], cwd=tmp_path)
            assert refused.returncode == 77, refused.stderr
            assert not (tmp_path / "x.sif").exists()
            # Either verb pulls what is not there.
            done = front(known, ["exec", private, "sh", "-c", "cat /opt/marker; env"], cwd=tmp_path)
            assert done.stdout.startswith("the image's file\n"), done.stderr
            assert "UDI_PASSWORD" not in done.stdout
            assert front(known, ["pull", "--force", "x.sif", private], cwd=tmp_path).returncode == 0
            workflow.write(f'rule a:\n    output: "a.txt"\n    container: "{private}"\n    shell: "touch {{output}}"\n')
            argv = [sys.executable, "-m", "udi_core", "lock"]
            locked = subprocess.run(argv, cwd=workflow.directory, env=known, capture_output=True, text=True)
            assert locked.returncode == 0, locked.stderr

    def test_contained_programs_see_nothing_of_the_hosts(
        self, env: dict[str, str], pointer: str, tmp_path: Path
    ) -> None:
        (tmp_path / "beside").touch()
        work = tmp_path / "work"
        work.mkdir()
        argv = ["exec", "--containall", "--home", str(work), pointer]
        new = f"/tmp/udi-contained-{os.getpid()}"
        word = f"pwd; echo $MINE; ls -A {tmp_path} $HOME; touch {new} ./out && echo written"
        done = front({**env, "MINE": "host"}, [*argv, "sh", "-c", word], cwd=work)
        assert done.stdout.splitlines() == [str(work), "", f"{tmp_path}:", "work", "", f"{work}:", "written"], done
        assert (work / "out").exists()
        assert not os.path.exists(new)

    def test_sif_files(self, env: dict[str, str], workflow: Workflow, push: Callable[..., str], tmp_path: Path) -> None:
        udi = [sys.executable, "-m", "udi_core"]
        metadata = oci.Layer.of(
            *(oci.directory(each) for each in (".singularity.d", ".singularity.d/env")),
            oci.file(".singularity.d/env/10-docker2singularity.sh", 'export FLAVOUR="${FLAVOUR:-sif}" OTHER=sif\n'),
            oci.file(".singularity.d/runscript", '#!/bin/sh\necho run with "$@"\n', 0o755),
        )
        layers = [*workflows.workflow_layers(), metadata]
        reference = push(images.derive(images.image("nopython"), tmp_path / "layout", layers), "snakemake/sif")
        subprocess.run([*udi, "pull", "--quiet", reference], env=env, check=True, capture_output=True)
        path = subprocess.run([*udi, "path", reference], env=env, check=True, capture_output=True, text=True).stdout
        sif.around(Path(path.strip()).read_bytes(), workflow.directory / "tool.sif")
        assert front(env, ["run", "tool.sif", "a b"], cwd=workflow.directory).stdout == "run with a b\n"
        assert "echo run with" in front(env, ["inspect", "--runscript", "tool.sif"], cwd=workflow.directory).stdout
        workflow.write(
            """
            rule a:
                output: "a.txt"
                container: "tool.sif"
                shell: "cat /opt/marker > {output}; echo $FLAVOUR $OTHER $APPTAINER_NAME >> {output}"
            """
        )
        workflow.run(APPTAINERENV_OTHER="mine")
        assert workflow.read("a.txt") == "the image's file\nsif mine tool.sif\n"

    def test_a_warm_start_gives_what_a_cold_one_gave(self, env: dict[str, str], pointer: str, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\necho started >> {tmp_path}/starts\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        (tmp_path / "starts").touch()
        variables = {**env, "UDI_PYTHON": str(python)}
        variables.pop("LANG", None)

        def ask(word: str, **more: str) -> list[str]:
            argv = [os.path.join(workflows.front_directory(), "apptainer"), "exec", "--bind", str(tmp_path), pointer]
            done = subprocess.run(
                [*argv, "sh", "-c", word],
                env={**variables, **more},
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            return [*done.stdout.splitlines(), str((tmp_path / "starts").read_text().count("started"))]

        everything = (
            "env | sort; pwd; id; umask; ulimit -a; cat /opt/marker; grep -E '^(SigIgn|CapEff)' /proc/self/status"
        )
        cold, warm = ask(everything), ask(everything)
        assert (cold.pop(), warm.pop()) == ("1", "1")
        assert cold == warm
        assert ask("echo two $FLAVOUR $X") == ["two image", "1"]
        assert ask("echo two $FLAVOUR $X", X="set") == ["two image set", "2"]
        assert ask("exit 7") == ["2"]
        # A pointer to another image, a lock or a configuration file must be seen at once.
        Path(pointer).write_text("no image")
        assert "no image" in ask("echo two")[0]


def test_oci_layouts_and_archives(env: dict[str, str], tmp_path: Path) -> None:
    layout = images.image("tiny")
    assert isinstance(layout, oci.Layout)
    done = front(env, ["exec", f"oci:{layout.path}", "echo", "from a layout"])
    assert done.stdout == "from a layout\n", done.stderr
