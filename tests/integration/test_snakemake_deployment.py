"""The plugin for the coming Snakemake: passes the interface's tests, and is nothing to today's Snakemake."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import workflows

pytestmark = [pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry"), pytest.mark.timeout(900)]

CLONE = Path(__file__).resolve().parents[2]
PLUGIN = CLONE / "snakemake_plugin" / "snakemake-software-deployment-plugin-udi"
TESTS = CLONE / "tests" / "support" / "deployment_plugin.py"

env = workflows.module_environment


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with the plugin, installed as a user would, and the interface, which Snakemake 9 forbids."""
    top = tmp_path_factory.mktemp("plugin") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", top], check=True, timeout=120)
    python = top / "bin" / "python"
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    wanted = [each for each in project["dependencies"] if not each.startswith("udi-workflows")]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--disable-pip-version-check"]
    for arguments in ([*wanted, "pytest"], ["--no-deps", str(PLUGIN)]):
        done = subprocess.run([*pip, *arguments], capture_output=True, text=True, timeout=600)
        if done.returncode and "CI" not in os.environ:
            pytest.skip(f"pip could not install {arguments}: {done.stderr[-500:]}")
        assert done.returncode == 0, done.stderr
    # UDI and what it needs are those of the interpreter that runs the tests; the environment's own packages come first.
    packages = next(top.glob("lib/python*/site-packages"))
    paths = [CLONE, CLONE / "snakemake_plugin", sysconfig.get_paths()["purelib"]]
    (packages / "udi.pth").write_text("".join(f"{path}\n" for path in paths))
    return str(python)


def test_the_interfaces_own_tests(python: str, env: dict[str, str], push: Callable[..., str], tmp_path: Path) -> None:
    image = workflows.push_workflow_image(push, tmp_path / "layout", "snakemake/plugin")
    udi = [sys.executable, "-m", "udi_core"]
    subprocess.run([*udi, "pull", "--quiet", image], env=env, check=True, capture_output=True)
    stored = subprocess.run([*udi, "path", image], env=env, check=True, capture_output=True, text=True).stdout.strip()
    file = tmp_path / "tool.squashfs"
    file.write_bytes(Path(stored).read_bytes())
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-c", os.devnull, TESTS],
        env={**env, "TEST_IMAGE": image, "TEST_FILE": str(file)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "skipped" not in done.stdout, done.stdout


def test_todays_snakemake_does_not_load_it(env: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("snakemake")
    workflow = workflows.make(tmp_path / "w", env)
    workflow.write('rule a:\n    output: "a.txt"\n    shell: "echo > {output}"\n')
    code = (
        "import sys\nfrom snakemake.cli import main\n"
        "try:\n    main(['--cores', '1', '--quiet', 'all'])\n"
        "except SystemExit as stop:\n    print('status', stop.code)\n"
        "print([name for name in sys.modules if 'software_deployment' in name])"
    )
    done = subprocess.run(
        [workflow.python, "-c", code],
        env={**workflow.env, "PYTHONPATH": str(PLUGIN)},
        cwd=workflow.directory,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout.splitlines()[-2:] == ["status 0", "[]"], done.stdout + done.stderr
    assert workflow.read("a.txt") == "\n"
