"""What Snakemake's own tests of containers check and test_snakemake.py does not: modules, groups, conda, notebooks."""

from __future__ import annotations

import bz2
import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import images, oci, workflows
from tests.support.workflows import Workflow

pytest.importorskip("snakemake")
pytestmark = [pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry"), pytest.mark.timeout(600)]

#: As much of conda's command line as Snakemake uses in an image, above rattler, which solves and links as pixi does.
CONDA = """#!/usr/bin/python3
import asyncio, json, os, sys
import certifi, yaml
os.environ["SSL_CERT_FILE"] = certifi.where()  # rattler wants certificates, whatever the channel
from rattler import install, solve

async def create(file, prefix):
    with open(file) as text:
        asked = yaml.safe_load(text)
    records = await solve(asked["channels"], asked["dependencies"], platforms=["linux-64", "noarch"])
    await install(records, target_prefix=prefix, cache_dir=os.environ["CONDA_PKGS_DIRS"], show_progress=False)

match sys.argv[1:]:
    case ["info", "--json"]:
        print(json.dumps({"conda_prefix": "/opt/conda", "platform": "linux-64"}))
    case ["--version"]:
        print("conda 25.1.0")
    case ["config", "--set", "channel_priority", "strict"]:
        pass
    case ["env", "create", "--quiet", "--no-default-packages", "--file", file, "--prefix", prefix]:
        asyncio.run(create(file, prefix))
        os._exit(0)  # rattler's threads may still be there, and Python's end would abort
    case other:
        sys.exit(f"conda: {other}")
"""


def make_channel(top: Path, *versions: str) -> None:
    """A conda channel with some versions of a package ``fit``, which has one program."""
    packages = {}
    for version in versions:
        program = f"#!/bin/sh\necho fitted by {version} in $CONDA_PREFIX\n".encode()
        index = {"name": "fit", "version": version, "build": "0", "build_number": 0, "depends": [], "noarch": "generic"}
        index |= {"subdir": "noarch"}
        digest = hashlib.sha256(program).hexdigest()
        path = {"_path": "bin/fit", "path_type": "hardlink", "sha256": digest, "size_in_bytes": len(program)}
        entries = [
            oci.directory("info"),
            oci.file("info/index.json", json.dumps(index)),
            oci.file("info/paths.json", json.dumps({"paths": [path], "paths_version": 1})),
            oci.directory("bin"),
            oci.file("bin/fit", program, 0o755),
        ]
        content = bz2.compress(oci.tar(entries))
        packages[f"fit-{version}-0.tar.bz2"] = {
            **index,
            "md5": hashlib.md5(content).hexdigest(),
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
        }
        (top / "noarch").mkdir(parents=True, exist_ok=True)
        (top / "noarch" / f"fit-{version}-0.tar.bz2").write_bytes(content)
    for subdir, has in (("noarch", packages), ("linux-64", {})):
        (top / subdir).mkdir(parents=True, exist_ok=True)
        repodata = {"info": {"subdir": subdir}, "packages": has, "packages.conda": {}, "repodata_version": 1}
        (top / subdir / "repodata.json").write_text(json.dumps(repodata))


env = workflows.module_environment
workflow = workflows.in_environment


@pytest.fixture(scope="module")
def image(push: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Also with conda, in its usual place."""
    layer = oci.Layer.of(
        oci.directory("opt"),
        oci.directory("opt/conda"),
        oci.directory("opt/conda/bin"),
        oci.file("opt/conda/bin/conda", CONDA, 0o755),
        oci.file("opt/conda/bin/activate", 'export PATH="$1/bin:$PATH" CONDA_PREFIX="$1"\n'),
        oci.symlink("usr/local/bin/conda", "/opt/conda/bin/conda"),
    )
    layers = [
        *workflows.workflow_layers(),
        images.python_layer("py-rattler", "pyyaml", "certifi", name="numeric"),
        layer,
    ]
    layout = images.derive(images.image("numeric"), tmp_path_factory.mktemp("image") / "layout", layers)
    return "docker://" + push(layout, "snakemake/forms").removeprefix("docker:")


def test_modules_old_names_groups_and_other_shells(workflow: Workflow, image: str) -> None:
    name = image.rpartition(":")[0].rpartition("/")[2]
    workflow.write(
        f"""
        shell.executable("sh")
        container: "docker://127.0.0.1:9/nothing/here:1"

        rule all:
            input: "b.txt", "shown.txt", "none.txt"
            container: None
        module of_others:
            snakefile: "others.smk"
        use rule * from of_others
        rule shown:
            output: "{{image,shown}}.txt"
            container: "{image.replace(name, "{name}")}"
            shell: "cat /opt/marker > {{output}}; test -z \\"$BASH_VERSION\\""
        rule none:
            output: "none.txt"
            singularity: None
            shell: "test ! -d /.singularity.d && echo outside > {{output}}"
        """.replace("{name}", name)
    )
    workflow.write(
        f"""
        container: "{image}"
        rule a:
            output: temp("a.txt")
            group: "together"
            script: "a.py"
        rule b:
            input: "a.txt"
            output: "b.txt"
            group: "together"
            singularity: "{image}"
            shell: "cat {{input}} /opt/marker > {{output}}"
        """,
        "others.smk",
    )
    workflow.write('open(snakemake.output[0], "w").write(open("/opt/marker").read())\n', "a.py")
    workflow.run()
    assert workflow.read("b.txt") == "the image's file\n" * 2
    assert workflow.read("shown.txt") == "the image's file\n"
    assert workflow.read("none.txt") == "outside\n"


@pytest.mark.root
def test_what_is_around_the_working_directory_cannot_be_written(env: dict[str, str], image: str) -> None:
    # Neither in /tmp nor in another place that images have.
    with tempfile.TemporaryDirectory(dir="/srv", prefix="udi-test-") as home:
        workflow = workflows.make(Path(home) / "project" / "run", {**env, "HOME": home})
        workflow.write("from the source cache\n", "data/source.txt")
        workflow.write(
            f"""
            rule a:
                output: "a.txt"
                params: workflow.source_path("data/source.txt")
                container: "{image}"
                shell: "cat {{params}} > {{output}}; ! touch ../beside.txt; ! touch ../../beside.txt"
            """
        )
        workflow.run()
        assert workflow.read("a.txt") == "from the source cache\n"
        assert not list(Path(home).rglob("beside.txt"))


def test_a_reference_with_blanks_is_refused(workflow: Workflow, image: str) -> None:
    workflow.write(
        f'rule a:\n    output: "a.txt"\n    container: "{image} with blanks"\n    shell: "touch {{output}}"\n'
    )
    done = workflow.run(check=False)
    assert done.returncode == 1
    assert "containing whitespace" in done.stdout


def test_conda_environments_are_made_and_used_in_the_image(workflow: Workflow, image: str) -> None:
    workflow.write(
        f"""
        rule a:
            output: "a.txt"
            conda: "fit.yaml"
            container: "{image}"
            shell: "fit > {{output}}; cat /opt/marker >> {{output}}"
        """
    )
    make_channel(workflow.directory / "channel", "2.0", "2.1", "3.0")
    workflow.write(f"channels: ['file://{workflow.directory}/channel']\ndependencies:\n  - fit <3\n", "fit.yaml")
    # Snakemake asks the host's conda what it is, and to clean up; the environment is not its business.
    answers = '{"conda_prefix": "/nonexistent", "platform": "linux-64"}'
    script = f"case $1 in info) echo '{answers}' ;; --version) echo conda 25.1.0 ;; clean) ;; *) exit 2 ;; esac"
    host = workflow.write(f"#!/bin/sh\n{script}\n", "host/conda", 0o755).parent
    # Snakemake's place for packages is /tmp/conda, which whoever comes first on a node owns.
    packages = f"--env CONDA_PKGS_DIRS={workflow.directory}/packages"
    workflow.run(*("--sdm", "conda", "apptainer", "--apptainer-args", packages), PATH=f"{host}:{workflow.env['PATH']}")
    (prefix,) = (workflow.directory / ".snakemake" / "conda").glob("*/")
    assert workflow.read("a.txt") == f"fitted by 2.1 in {prefix}\nthe image's file\n"
    assert (prefix / "conda-meta" / "fit-2.1-0.json").exists()


def test_scripts_in_r(workflow: Workflow, push: Callable[..., str], tmp_path: Path) -> None:
    layer = oci.Layer.of(oci.directory("opt"), oci.file("opt/marker", "the image's file\n"))
    layout = images.derive(images.image("r"), tmp_path / "layout", [layer])
    image = "docker://" + push(layout, "snakemake/r").removeprefix("docker:")
    workflow.write(
        f"""
        container: "{image}"
        rule good:
            input: table="in.csv"
            output: "{{name,good}}.txt"
            params: scale=2.5, names=["x", "y"]
            log: "logs/{{name}}.log"
            threads: 2
            script: "scripts/good.R"
        rule bad:
            output: "bad.txt"
            script: "scripts/bad.R"
        """
    )
    workflow.write("x,y\n1,2\n3,6\n", "in.csv")
    workflow.write("scaled <- function(values) values * snakemake@params[['scale']]\n", "scripts/helper.R")
    workflow.write(
        """
        snakemake@source("helper.R")
        table <- read.csv(snakemake@input[["table"]])
        values <- sapply(snakemake@params[["names"]], function(name) sd(scaled(table[[name]])))
        said <- c(snakemake@rule, snakemake@wildcards[["name"]], snakemake@threads, snakemake@config[["who"]])
        log <- file(snakemake@log[[1]], open = "wt")
        sink(log, type = "message")
        message("written by R")
        libraries <- Sys.getenv("R_LIBS", "none of the host's")
        lines <- c(paste(said, collapse = " "), round(values, 3), readLines("/opt/marker"), libraries)
        writeLines(lines, snakemake@output[[1]])
        """,
        "scripts/good.R",
    )
    workflow.write('file.create(snakemake@output[[1]])\nstop("there is no column ", "z")\n', "scripts/bad.R")
    workflow.run("good.txt", "--config", "who=me", R_LIBS="/usr/lib/R/of-the-host")
    lines = workflow.read("good.txt").splitlines()
    assert lines == ["good good 2 me", "3.536", "7.071", "the image's file", "none of the host's"]
    assert workflow.read("logs/good.log") == "written by R\n"
    done = workflow.run("bad.txt", check=False)
    assert done.returncode == 1
    assert "there is no column z" in done.stdout
    assert "Execution halted" in done.stdout
    assert not (workflow.directory / "bad.txt").exists()


def test_notebooks_are_executed_by_the_images_jupyter(
    workflow: Workflow, push: Callable[..., str], tmp_path: Path
) -> None:
    script = "#!/usr/bin/python3\nfrom nbconvert.nbconvertapp import main\nmain()\n"
    layers = [
        *workflows.workflow_layers(),
        images.python_layer("ipykernel", "nbconvert", name="numeric"),
        oci.Layer.of(oci.file("usr/local/bin/jupyter-nbconvert", script, 0o755)),
    ]
    layout = images.derive(images.image("numeric"), tmp_path / "layout", layers)
    image = "docker://" + push(layout, "snakemake/notebook").removeprefix("docker:")
    workflow.write(
        f"""
        rule a:
            output: "a.txt"
            log: notebook="logs/a.ipynb"
            container: "{image}"
            notebook: "a.ipynb"
        """
    )
    source = 'text = open("/opt/marker").read()\nopen(snakemake.output[0], "w").write(text)\nprint("shown:", text)'
    cell = {"cell_type": "code", "execution_count": None, "id": "one", "metadata": {}, "outputs": [], "source": source}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    kernel["language_info"] = {"name": "python"}  # type: ignore[assignment]
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    workflow.write(json.dumps(notebook), "a.ipynb")
    workflow.run()
    assert workflow.read("a.txt") == "the image's file\n"
    assert "shown: the image's file" in workflow.read("logs/a.ipynb")
