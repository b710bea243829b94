"""The command ``udi`` as a user runs it: a process, its output, its exit code, and what it leaves in the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.fakes.faulty_registry import FaultyRegistry, faulty_registry
from tests.support import oci
from tests.support.command import three_parts, tree, udi

pytestmark = pytest.mark.needs("bwrap", "tar2sqfs", "docker-registry", "apt-get")


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[FaultyRegistry]:
    with faulty_registry(tmp_path / "served") as registry:
        registry.layout.add_image([oci.Layer.of(oci.directory("bin"), oci.file("bin/data", os.urandom(3_000_000)))])
        yield registry


def test_the_life_of_an_image(base_image: str, udi_env: dict[str, str]) -> None:
    assert udi("lookup", base_image, env=udi_env).returncode == 1
    pulled = udi("pull", "--json", base_image, env=udi_env)
    assert pulled.returncode == 0, pulled.stderr
    image = json.loads(pulled.stdout)
    assert udi("lookup", base_image, env=udi_env).stdout.strip() == image["id"]
    assert udi("path", base_image, env=udi_env).stdout.strip() == image["squashfs"]
    assert image["id"][:12] in udi("images", env=udi_env).stdout
    assert json.loads(udi("images", "--json", env=udi_env).stdout)[0]["id"] == image["id"]
    assert "python:" in udi("inspect", f"id:{image['id'][:12]}", env=udi_env).stdout
    assert udi("verify", base_image, env=udi_env).returncode == 0
    assert udi("gc", "--grace", "0", env=udi_env).returncode == 0
    assert udi("lookup", base_image, env=udi_env).returncode == 0, "a tagged image stays"
    assert udi("rm", base_image, env=udi_env).returncode == 0
    assert udi("lookup", base_image, env=udi_env).returncode == 1
    assert not os.path.exists(image["squashfs"])


def test_one_pull_serves_nodes_of_several_kinds(faulty: FaultyRegistry, udi_env: dict[str, str]) -> None:
    layout, wanted = faulty.layout, ("linux/amd64", "linux/amd64/v3", "linux/arm64")
    images = [
        layout.add_image([oci.Layer.of(oci.file("for", each))], tag=None, platform=each)
        for each in (*wanted, "linux/s390x")
    ]
    layout.add_index(images, tag="mixed")
    reference = faulty.reference("mixed")
    pulled = udi("pull", "--json", *(f"--platform={each}" for each in wanted), reference, env=udi_env)
    assert [each["id"] for each in json.loads(pulled.stdout)] == [each.digest[7:] for each in images[:3]], pulled.stderr
    listed = udi("images", env=udi_env).stdout
    assert all(each in listed for each in wanted)
    for node, image in (("linux/amd64/v3", images[1]), ("linux/arm64", images[2])):
        found = udi("lookup", reference, env={**udi_env, "UDI_PLATFORM": node})
        assert found.stdout.strip() == image.digest[7:]
    removed = udi("rm", reference, env=udi_env)
    assert removed.returncode == 0 and removed.stdout.count("removed") == 3
    assert tree(udi_env["UDI_STORE"]) == []


def test_a_damaged_image_is_found_and_made_anew(faulty: FaultyRegistry, udi_env: dict[str, str]) -> None:
    image = json.loads(udi("pull", "--json", faulty.reference(), env=udi_env).stdout)
    squashfs = Path(image["squashfs"])
    squashfs.chmod(0o644)
    squashfs.write_bytes(b"damaged")
    three_parts(udi("verify", faulty.reference(), env=udi_env), 65, "udi pull --force")
    squashfs.unlink()
    three_parts(udi("verify", faulty.reference(), env=udi_env), 65, "udi pull --force")
    squashfs.with_name("image.json").write_text("{")
    three_parts(udi("pull", faulty.reference(), env=udi_env), 73, "--force")
    assert udi("pull", "--force", faulty.reference(), env=udi_env).returncode == 0
    assert udi("verify", faulty.reference(), env=udi_env).returncode == 0


def test_run_passes_environment_volumes_directory_and_status(
    base_image: str, udi_env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("from the host")
    (tmp_path / "vars").write_text("# comment\nA=file\nB=file\n")
    env = {**udi_env, "A": "host", "HOST_ONLY": "host"}
    options = ["-V", f"{tmp_path}/in:/data:ro", "-e", "A=option", "--env-file", f"{tmp_path}/vars", "-w", "/data"]
    script = 'cat file; echo; echo "$A $B $HOST_ONLY $(pwd)"; echo err >&2; exit 7'
    done = udi("run", *options, base_image, "--", "bash", "-c", script, env=env)
    assert done.returncode == 7
    assert done.stdout == "from the host\noption file host /data\n"
    assert done.stderr.endswith("err\n")
    clear = udi("run", "--clearenv", base_image, "--", "bash", "-c", 'echo "[$HOST_ONLY]"', env=env)
    assert clear.stdout == "[]\n"


def test_a_variable_is_passed_on_only_if_it_is_set(base_image: str, udi_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "vars").write_text("FROM_FILE\nUNSET_FILE\n")
    options = ["-e", "SET", "-e", "UNSET", "--env-file", f"{tmp_path}/vars", "--clearenv"]
    env = {**udi_env, "SET": "1", "FROM_FILE": "2"}
    script = "echo ${SET-no} ${FROM_FILE-no} ${UNSET-no} ${UNSET_FILE-no}"
    done = udi("run", *options, base_image, "--", "bash", "-c", script, env=env)
    assert done.stdout == "1 2 no no\n", done.stderr
    three_parts(udi("run", "-e", "=x", base_image, "--", "true", env=env), 125, "name is missing")


def shell(script: str, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A shell script in which $udi is the command."""
    env = {**env, "udi": f"{sys.executable} -P -m udi_core"}
    argv = ["bash", "-c", script]
    return subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_closed_streams_are_dev_null_for_the_task(base_image: str, udi_env: dict[str, str]) -> None:
    assert udi("run", base_image, "--", "true", env=udi_env).returncode == 0
    env = {**udi_env, "REF": base_image}
    look = "$udi run $REF -- bash -c 'echo out; echo err >&2; cat; readlink /proc/self/fd/{0,1,2} >/tmp/streams'"
    look = look.replace("/tmp/streams", f"{udi_env['HOME']}/streams")
    for closed in ("<&- >&- 2>&-", ">&-", "<&-", "2>&-"):
        done = shell(f"{look} {closed}", env)
        assert done.returncode == 0, (closed, done)
        streams = Path(udi_env["HOME"], "streams").read_text().split()
        assert ("/dev/null" in streams) and not any("lease" in each for each in streams), (closed, streams)
    for closed in (">&-", "<&-", "2>&-"):
        assert shell(f"$udi images {closed}", env).returncode == 0
        assert shell(f"$udi nosuch {closed}", env).returncode == 2


def test_an_output_that_is_full(base_image: str, udi_env: dict[str, str]) -> None:
    env = {**udi_env, "REF": base_image}
    done = shell("$udi pull $REF 2>/dev/full", env)
    assert done.returncode == 0, done
    three_parts(shell("$udi images >/dev/full", env), 74, "cannot be written", "No space left")
    three_parts(shell("$udi config show --json >/dev/full", env), 74, "cannot be written")
    assert shell("$udi nosuch 2>/dev/full", env).returncode == 2
    assert shell("$udi run $REF -- nosuch 2>/dev/full", env).returncode == 127
    assert shell("$udi images --json 2>&1 | head -c 1", env).returncode == 0


def test_a_current_directory_that_is_gone(base_image: str, udi_env: dict[str, str], tmp_path: Path) -> None:
    assert udi("pull", base_image, env=udi_env).returncode == 0
    env = {**udi_env, "REF": base_image}
    gone = tmp_path / "gone"

    def there(command: str) -> subprocess.CompletedProcess[str]:
        gone.mkdir()
        return shell(f"rmdir $PWD; {command}", env, gone)

    three_parts(there("$udi run $REF -- true"), 125, "current directory", "cd to another")
    three_parts(there("$udi run -V x:/x $REF -- true"), 125, "current directory")
    three_parts(there("$udi pull oci:x"), 2, "current directory")
    assert there("$udi images").returncode == 0
    assert there("$udi pull $REF").returncode == 0


def test_a_volume_that_is_read_only_cannot_be_written(base_image: str, udi_env: dict[str, str], tmp_path: Path) -> None:
    done = udi("run", "-V", f"{tmp_path}:/data:ro", base_image, "--", "touch", "/data/x", env=udi_env)
    assert done.returncode == 1 and "Read-only" in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_signal_ends_the_task_with_its_own_status(base_image: str, udi_env: dict[str, str]) -> None:
    assert udi("run", base_image, "--", "bash", "-c", "kill -TERM $$", env=udi_env).returncode in (143, -15)


def test_node_warm_status_and_clean(base_image: str, udi_env: dict[str, str]) -> None:
    assert udi("node", "warm", base_image, env=udi_env).returncode == 0
    (state,) = json.loads(udi("node", "status", "--json", env=udi_env).stdout)
    assert state["digest"].startswith("sha256:")
    _, row = udi("node", "status", env=udi_env).stdout.splitlines()
    assert row.split()[-1] == base_image.removeprefix("docker:"), "as udi images shows it"
    assert "unmounted" in udi("node", "clean", env=udi_env).stdout
    assert json.loads(udi("node", "status", "--json", env=udi_env).stdout) == []


def test_config_show_names_each_values_origin(udi_env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("idle: 5\nmirrors:\n  docker.io: [http://127.0.0.1:5000]\n")
    shown = json.loads(udi("config", "show", "--json", env={**udi_env, "UDI_CONFIG": str(file)}).stdout)
    assert shown["idle"] == {"value": 5.0, "origin": str(file)}
    assert shown["store"]["origin"] == "UDI_STORE"
    file.write_text("idel: 5\n")
    wrong = udi("config", "show", env={**udi_env, "UDI_CONFIG": str(file)})
    assert wrong.returncode == 78 and "'idle'" in wrong.stderr and str(file) in wrong.stderr


def test_the_site_s_policy_is_asked_when_an_image_is_warm(
    base_image: str, udi_env: dict[str, str], tmp_path: Path
) -> None:
    assert udi("run", base_image, "--", "true", env=udi_env).returncode == 0
    identity = udi("lookup", base_image, env=udi_env).stdout.strip()
    site, user = tmp_path / "site.yaml", tmp_path / "user.yaml"
    env = {**udi_env, "UDI_SITE_CONFIG": str(site), "UDI_CONFIG": str(user)}
    site.write_text("policy: {registries: [ghcr.io]}\n")
    for reference in (base_image, f"id:{identity}"):
        three_parts(udi("run", reference, "--", "true", env=env), 125, "does not allow images", "ghcr.io")
    three_parts(udi("pull", base_image, env=env), 77, "does not allow images")
    (tmp_path / "secret").mkdir()
    site.write_text(f"volumes: ['{tmp_path}/secret:/site']\npolicy: {{denied_sources: ['{tmp_path}/secret']}}\n")
    assert udi("run", base_image, "--", "test", "-d", "/site", env=env, cwd=tmp_path / "secret").returncode == 0
    user.write_text(f"volumes: ['{tmp_path}:/mnt']\n")
    three_parts(udi("run", base_image, "--", "true", env=env), 125, "does not allow the volume", "secret")


def test_doctor_says_what_each_backend_lacks(udi_env: dict[str, str]) -> None:
    env = {**udi_env, "UDI_TOOL_SQUASHFUSE_LL": "/nowhere"}
    document = json.loads(udi("doctor", "--json", env=env).stdout)
    found = {each["what"]: each for each in document["findings"]}
    assert found["squashfuse_ll"]["level"] == "note" and "squashfuse" in found["squashfuse_ll"]["hint"]
    assert found["bwrap"]["level"] == "ok"


def test_commands_that_cannot_be_run(base_image: str, udi_env: dict[str, str]) -> None:
    three_parts(udi("run", base_image, "--", "nosuchcommand", env=udi_env), 127, "nosuchcommand")
    three_parts(udi("run", base_image, "--", "/etc/passwd", env=udi_env), 126, "/etc/passwd")


def test_an_unknown_command_and_option(udi_env: dict[str, str]) -> None:
    three_parts(udi("pul", env=udi_env), 2, "pull")
    three_parts(udi("pull", "--nosuch", "x", env=udi_env), 2, "--help")


def test_errors_as_json(udi_env: dict[str, str]) -> None:
    done = udi("pull", "--json", "team/UPPER", env=udi_env)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "InvalidReference"


def test_login_keeps_the_password_out_of_sight(udi_env: dict[str, str], tmp_path: Path, faulty: FaultyRegistry) -> None:
    env = {**udi_env, "DOCKER_CONFIG": str(tmp_path / "docker")}
    done = udi("login", "-u", "me", "--password-stdin", faulty.host, env=env, input="secret\n")
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout + done.stderr
    file = tmp_path / "docker" / "config.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert faulty.host in json.loads(file.read_text())["auths"]
    assert udi("logout", f"http://{faulty.host}/v2/", env=env).returncode == 0
    assert json.loads(file.read_text())["auths"] == {}
    assert udi("logout", faulty.host, env=env).returncode == 1
