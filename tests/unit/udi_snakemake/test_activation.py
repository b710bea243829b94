"""Activation: what is set, what is left alone, and the way back."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from udi_snakemake import activation

from tests.support import tools


def program(directory: Path, name: str, text: str) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\necho {text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_front_directory_holds_the_two_fronts_and_nothing_else() -> None:
    directory = Path(activation.front_directory())
    assert sorted(entry.name for entry in directory.iterdir()) == ["apptainer", "singularity", "udi-front"]
    for name in activation.PROGRAMS:
        assert (directory / name).stat().st_mode & stat.S_IXUSR
    assert (directory / "apptainer").read_text() == (directory / "singularity").read_text()


def test_variables_put_the_front_first_once(tmp_path: Path) -> None:
    environ = {"PATH": f"/usr/bin:{activation.front_directory()}:/bin"}
    first = activation.variables(environ, "/p")
    assert first == {"PATH": f"{activation.front_directory()}:/usr/bin:/bin", "UDI_PYTHON": "/p", "UDI_SNAKEMAKE": "1"}
    assert activation.variables(first, "/p") == first


def test_without_fronts_drops_those_of_other_installations(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / activation.MARKER).touch()
    assert activation.without_fronts(f"/usr/bin:{other}:{activation.front_directory()}") == "/usr/bin"


def test_a_real_apptainer_is_seen(tmp_path: Path) -> None:
    real = program(tmp_path / "opt", "singularity", "real")
    assert activation.real_program(f"{activation.front_directory()}:{tmp_path}:{tmp_path / 'opt'}") == real
    assert activation.real_program(activation.front_directory()) is None


@pytest.mark.parametrize("value", [None, "0", "", "yes"])
def test_nothing_happens_unasked(value: str | None) -> None:
    environ = {"PATH": "/usr/bin"} | ({} if value is None else {"UDI_SNAKEMAKE": value})
    before = dict(environ)
    assert not activation.activate(environ)
    assert environ == before


def test_the_switch_activates() -> None:
    environ = {"PATH": "/usr/bin", "UDI_SNAKEMAKE": "1"}
    assert activation.activate(environ)
    assert environ["PATH"].split(":")[0] == activation.front_directory()
    assert environ["UDI_PYTHON"] == sys.executable


@pytest.mark.parametrize(("shell", "argv"), [("sh", ["sh", "-c"]), ("csh", ["csh", "-fc"]), ("fish", ["fish", "-c"])])
def test_shell_code_does_what_it_says(shell: str, argv: list[str], tmp_path: Path) -> None:
    tools.need([argv[0]])
    odd = tmp_path / "it's \\ odd!"
    odd.mkdir()
    environ = {"PATH": f"{odd}:/usr/bin:/bin", "HOME": str(tmp_path)}
    show = ' /usr/bin/printenv PATH UDI_PYTHON UDI_SNAKEMAKE; echo "."'
    on = activation.shell_code(environ, shell)
    off = activation.shell_code(activation.variables(environ), shell, off=True)

    def run(code: str) -> list[str]:
        done = subprocess.run([*argv, code + show], env=environ, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert run(on) == [f"{activation.front_directory()}:{odd}:/usr/bin:/bin", sys.executable, "1", "."]
    assert run(on + off) == [f"{odd}:/usr/bin:/bin", "."]


@pytest.mark.needs("modulecmd")
def test_the_modulefile_sets_the_same_and_takes_it_back() -> None:
    modules = Path(__file__).parents[3] / "contrib" / "modulefiles"
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "MODULEPATH": str(modules), "UDI_PREFIX": sys.prefix}

    def run(code: str) -> list[str]:
        load = f'eval "$(modulecmd sh {code})";'
        show = ' /usr/bin/printenv PATH UDI_PYTHON UDI_SNAKEMAKE; echo "."'
        done = subprocess.run(["sh", "-c", load + show], env=environ, capture_output=True, text=True)
        return done.stdout.splitlines()

    python = os.path.join(sys.prefix, "bin", "python3")
    assert run("load udi-snakemake") == [f"{activation.front_directory()}:/usr/bin:/bin", python, "1", "."]
    assert run('load udi-snakemake)"; eval "$(modulecmd sh unload udi-snakemake') == ["/usr/bin:/bin", "."]


def hook(environ: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("snakemake_interface_executor_plugins")
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)


def test_the_hook_activates_only_when_asked() -> None:
    code = "import snakemake_executor_plugin_udi, os; print(os.environ['PATH'])"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("UDI_")}
    clean["PATH"] = activation.without_fronts(clean["PATH"])
    assert hook(clean, code).stdout.strip() == clean["PATH"]
    assert hook({**clean, "UDI_SNAKEMAKE": "1"}, code).stdout.startswith(activation.front_directory() + ":")


def test_a_broken_installation_does_not_keep_snakemake_from_starting() -> None:
    code = (
        "import sys; sys.modules['udi_snakemake'] = None; import snakemake_executor_plugin_udi as m; print(m.Executor)"
    )
    done = hook({**os.environ, "UDI_SNAKEMAKE": "1"}, code)
    assert done.returncode == 0
    assert "could not be honoured" in done.stderr


def test_the_registry_of_snakemake_accepts_the_hook() -> None:
    code = (
        "from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry as R\n"
        "plugin = R().get_plugin('udi')\n"
        "try:\n    plugin.executor(None, None)\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    done = hook({**os.environ}, code)
    assert "WorkflowError" in done.stdout, done.stderr
    assert "--executor local" in done.stdout


class TestFront:
    """The shell part of the front, run for real."""

    def run(self, *argv: str, name: str = "apptainer", **environ: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": "/usr/bin:/bin", **environ}
        return subprocess.run(
            [os.path.join(activation.front_directory(), name), *argv], env=env, capture_output=True, text=True
        )

    def test_version_parses_as_snakemake_parses_it(self) -> None:
        from packaging.version import Version

        for name, least in (("apptainer", "1.0.0"), ("singularity", "2.4.1")):
            for verb in ("--version", "version"):
                # An interpreter that does not exist shows that none is started.
                done = self.run(verb, name=name, UDI_PYTHON="/nonexistent")
                assert done.stdout.startswith(f"{name} version ")
                assert Version(done.stdout.strip().rsplit(" ", 1)[-1]) >= Version(least)
                assert "udi" in done.stdout

    def test_help_says_that_it_is_udi(self) -> None:
        done = self.run("--help", UDI_PYTHON=sys.executable)
        assert done.returncode == 0, done.stderr
        assert "UDI" in done.stdout.splitlines()[0]
        assert "udi env --off snakemake" in done.stdout

    def test_the_way_back_runs_the_real_program(self, tmp_path: Path) -> None:
        other = tmp_path / "front"
        program(other, "apptainer", "another front")
        (other / activation.MARKER).touch()
        program(tmp_path / "opt", "apptainer", 'real "$@"')
        path = f"{activation.front_directory()}:{other}:{tmp_path / 'opt'}:/usr/bin:/bin"
        done = self.run("exec", "a b", "c", PATH=path, UDI_SNAKEMAKE="0")
        assert done.stdout == "real exec a b c\n"

    def test_the_way_back_without_a_real_program(self) -> None:
        done = self.run("exec", UDI_SNAKEMAKE="0")
        assert done.returncode == 127
        assert "there is none in PATH" in done.stderr

    def test_without_python_it_says_so(self, tmp_path: Path) -> None:
        front = tmp_path / "udi_snakemake" / "bin"
        shutil.copytree(activation.front_directory(), front)
        done = subprocess.run([front / "apptainer", "exec"], env={"PATH": "/bin"}, capture_output=True, text=True)
        assert done.returncode == 69
        assert "udi env snakemake" in done.stderr

    def test_errors_have_three_parts_and_a_code(self) -> None:
        done = self.run("exec", "--unheard", "i", "c", UDI_PYTHON=sys.executable)
        assert done.returncode == 125
        assert "UDI does not know --unheard" in done.stderr
        assert "Supported are:" in done.stderr
