"""What ``inspect`` finds below /.singularity.d of a mounted image, which anybody may have made."""

from __future__ import annotations

from pathlib import Path

from udi_snakemake.inspecting import Metadata, of_files, text

CONFIGURED = Metadata(labels={"udi.digest": "sha256:0"}, environment={}, runscript="configured\n")


def test_labels_environment_and_runscript(tmp_path: Path) -> None:
    top = tmp_path / ".singularity.d"
    (top / "env").mkdir(parents=True)
    (top / "labels.json").write_text('{"version": 2, "udi.digest": "claimed"}')
    (top / "env" / "90-b.sh").write_text("export B=2\n")
    (top / "env" / "10-a.sh").write_text("export A=1\n")
    (top / "env" / "readme").write_text("no script\n")
    (top / "runscript").write_text("#!/bin/sh\nexec fit\n")
    found = of_files(str(tmp_path), CONFIGURED)
    assert found.labels == {"version": "2", "udi.digest": "sha256:0"}
    assert list(found.environment) == ["/.singularity.d/env/10-a.sh", "/.singularity.d/env/90-b.sh"]
    assert text(found, ("environment", "runscript")) == "export A=1\nexport B=2\n#!/bin/sh\nexec fit\n"
    assert text(found, ("labels",)) == "udi.digest: sha256:0\nversion: 2\n"


def test_links_of_the_image_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    for name in ("secret", "10-a.sh"):
        (tmp_path / "host" / name).write_text("the host's\n")
    image = tmp_path / "image"
    (image / ".singularity.d").mkdir(parents=True)
    for name, target in (("runscript", "secret"), ("labels.json", "secret"), ("env", "")):
        (image / ".singularity.d" / name).symlink_to(tmp_path / "host" / target)
    found = of_files(str(image), CONFIGURED)
    assert found == Metadata(labels=CONFIGURED.labels, environment={}, runscript="")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".singularity.d").symlink_to(image / ".singularity.d")
    assert of_files(str(tmp_path / "linked"), CONFIGURED) == CONFIGURED


def test_labels_that_are_none(tmp_path: Path) -> None:
    (tmp_path / ".singularity.d").mkdir()
    for content in ("[1, 2]", "{", "\0"):
        (tmp_path / ".singularity.d" / "labels.json").write_text(content)
        assert of_files(str(tmp_path), CONFIGURED).labels == CONFIGURED.labels
    assert of_files(str(tmp_path / "nowhere"), CONFIGURED) == CONFIGURED
