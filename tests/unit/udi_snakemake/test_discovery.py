"""Which images a Snakefile names: by its text, and by Snakemake's own plan."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from udi_snakemake.discovery import Found, ask_snakemake, default_snakefile, directives, scan

from udi_core.errors import ToolFailed, UsageError


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return str(path)


def images(found: list[Found]) -> list[str | None]:
    return [each.image for each in found]


def test_every_form_of_a_literal(tmp_path: Path) -> None:
    snakefile = write(
        tmp_path / "Snakefile",
        """
        container: "docker://bash"
        containerized: "docker://lab/all:1"

        rule a:
            output: "container: not this"
            singularity: 'docker://old/style'
            shell: "echo container: 'nor this' > {output}"

        rule b:  # container: "nor this"
            container:
                # a comment between
                "docker://ghcr.io/"
                "lab/tool:2.1",
            shell: "true"

        use rule b as c with:
            container: ("docker://third")

        rule d:
            container: None
            run:
                container = "docker://nor/this"
        """,
    )
    assert images(scan(snakefile)) == [
        "docker://bash",
        "docker://lab/all:1",
        "docker://old/style",
        "docker://ghcr.io/lab/tool:2.1",
        "docker://third",
    ]


def test_computed_references_are_reported_with_their_place(tmp_path: Path) -> None:
    snakefile = write(
        tmp_path / "Snakefile",
        """
        rule a:
            container: config["image"]
        rule b:
            container: "docker://{image}"
        rule c:
            container: lambda w: f"docker://{w.image}"
        """,
    )
    found = scan(snakefile)
    assert images(found) == [None, None, None]
    assert [(each.line, each.file) for each in found] == [(3, snakefile), (5, snakefile), (7, snakefile)]
    assert "config" in found[0].text


def test_includes_and_modules_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "rules" / "x.smk", 'include: "../Snakefile"\nrule x:\n    container: "docker://x"\n')
    write(tmp_path / "m" / "m.smk", 'container: "docker://m"\n')
    snakefile = write(
        tmp_path / "Snakefile",
        """
        include: "rules/x.smk"
        module m:
            snakefile: "m/m.smk"
        module far:
            snakefile: github("a/b", path="workflow/Snakefile", tag="1")
        include: "absent.smk"
        container: "docker://top"
        """,
    )
    found = scan(snakefile)
    assert images(found) == ["docker://x", "docker://m", None, None, "docker://top"]


def test_a_snakefile_that_does_not_tokenize_to_its_end() -> None:
    assert list(directives('container: "a"\nrule b:\n    shell: """never closed\n')) == [("container", '"a"', 1)]


def test_a_snakefile_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        scan(str(tmp_path / "absent"))


def test_the_standard_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Snakefile"):
        default_snakefile(str(tmp_path))
    inner = write(tmp_path / "workflow" / "Snakefile", "")
    assert default_snakefile(str(tmp_path)) == inner
    outer = write(tmp_path / "Snakefile", "")
    assert default_snakefile(str(tmp_path)) == outer


class TestSnakemakesPlan:
    @pytest.fixture(autouse=True)
    def snakemake(self) -> None:
        pytest.importorskip("snakemake")

    def test_computed_references_are_resolved(self, tmp_path: Path) -> None:
        snakefile = write(
            tmp_path / "Snakefile",
            """
            print("a Snakefile may print")
            rule all:
                input: expand("{image}.out", image=["bash", "alpine"])
            rule a:
                output: "{image}.out"
                container: "docker://{image}"
                shell: "true"
            rule unused:
                output: "never"
                container: "docker://unused"
                shell: "true"
            """,
        )
        assert sorted(ask_snakemake(snakefile, str(tmp_path))) == ["docker://alpine", "docker://bash"]
        assert ask_snakemake(snakefile, str(tmp_path), ["never"]) == ("docker://unused",)

    def test_outputs_that_exist_make_no_difference(self, tmp_path: Path) -> None:
        snakefile = write(
            tmp_path / "Snakefile", 'rule a:\n    output: "out"\n    container: "docker://a"\n    shell: "true"\n'
        )
        (tmp_path / "out").touch()
        assert ask_snakemake(snakefile, str(tmp_path)) == ("docker://a",)

    def test_a_plan_that_cannot_be_made(self, tmp_path: Path) -> None:
        snakefile = write(tmp_path / "Snakefile", 'rule a:\n    input: "absent"\n    shell: "true"\n')
        with pytest.raises(ToolFailed, match="could not plan") as caught:
            ask_snakemake(snakefile, str(tmp_path))
        assert "absent" in caught.value.details
