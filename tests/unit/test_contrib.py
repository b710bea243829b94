"""What sites install: the modulefile, and what Slurm's prolog and epilog make of a job's comment."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CONTRIB = Path(__file__).resolve().parents[2] / "contrib"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.needs("modulecmd")
def test_the_modulefile_brings_udi_and_no_other_program(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "udi", 'echo "the real udi: $*"')
    program(tmp_path / "bin" / "python3", "echo the wrong python")
    shutil.copytree(CONTRIB / "bin", tmp_path / "share" / "udi" / "bin")
    modules = str(CONTRIB / "modulefiles")
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "MODULEPATH": modules, "UDI_PREFIX": str(tmp_path)}
    code = (
        'eval "$(modulecmd sh load udi)"; udi run x; command -v python3; eval "$(modulecmd sh unload udi)"; echo $PATH'
    )
    done = subprocess.run(["sh", "-c", code], env=environ, capture_output=True, text=True)
    said, python, path = done.stdout.splitlines()
    assert said == "the real udi: run x"
    assert python != str(tmp_path / "bin" / "python3")
    assert path == "/usr/bin:/bin"


@pytest.mark.root
@pytest.mark.needs("setpriv")
@pytest.mark.parametrize(
    ("comment", "images"),
    [
        ("udi:docker:lab/reco:1", ["docker:lab/reco:1"]),
        ("mine udi:docker:lab/reco:1,v3=id:abc rest", ["docker:lab/reco:1", "v3=id:abc"]),
        ("a=b;udi:x;c=d", ["x"]),
        ("udi:$(touch $PLANTED),*,`touch $PLANTED`", ["$(touch", None]),
        ("udi:--all", ["--all"]),
        ("notudi:x", None),
        ("", None),
    ],
)
def test_the_prolog_warms_what_the_comment_names(tmp_path: Path, comment: str, images: list[str | None] | None) -> None:
    udi = program(tmp_path / "udi", f'printf "%s\\n" "$@" >> {tmp_path}/said; exit 1')
    environ = {
        "PATH": os.environ["PATH"],
        "UDI_PROGRAM": str(udi),
        "PLANTED": str(tmp_path / "planted"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_UID": "0",
        "SLURM_JOB_GID": "0",
        "SLURM_JOB_USER": "root",
        "SLURM_JOB_COMMENT": comment,
    }
    # A prolog that fails drains the node: it must not, even where udi does.
    subprocess.run([CONTRIB / "slurm" / "prolog.sh"], env=environ, check=True)
    said = (tmp_path / "said").read_text().splitlines() if (tmp_path / "said").exists() else None
    assert not (tmp_path / "planted").exists()
    if images is None:
        assert said is None
    elif images[-1] is None:
        assert said is not None and said[5] == images[0]
    else:
        assert said == ["node", "warm", "--no-pull", "--job=7", "--", *images]
    subprocess.run([CONTRIB / "slurm" / "epilog.sh"], env=environ, check=True)
    assert (tmp_path / "said").read_text().splitlines()[-3:] == ["node", "clean", "--job=7"]
