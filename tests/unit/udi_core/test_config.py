"""Configuration files: what is accepted, and that each wrong value names its file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from udi_core import Config, ConfigError, load_config


def load(tmp_path: Path, user: str, site: str = "", **variables: str) -> Config:
    (tmp_path / "user.yaml").write_text(user)
    (tmp_path / "site.yaml").write_text(site)
    files = {"UDI_CONFIG": str(tmp_path / "user.yaml"), "UDI_SITE_CONFIG": str(tmp_path / "site.yaml")}
    files["UDI_NODE_DIR"] = str(tmp_path / "node")  # where what was parsed is kept
    return load_config({"HOME": str(tmp_path), **files, **variables})


@pytest.mark.parametrize(
    "line",
    [
        "idle: .nan",
        "idle: .inf",
        "idle: -1",
        "idle: true",
        "idle: [1]",
        "idle: soon",
        "env: {A=B: x}",
        'env: {"": x}',
        "max_entries: 1.5",
        "max_entries: -1",
        "max_entries: .nan",
        f"max_entries: {1 << 64}",
        "max_ratio: yes",
        "memory: many",
        "memory: -5M",
        "memory: {}",
        "block_size: 3000",
        "block_size: 2M",
        "compression: brotli",
        "compression_level: high",
        "backends: [kernel, magic]",
        "backends: kernel",
        "automatic: [house]",
        "platform: amd64",
        "store: relative",
        "store: $NOT_SET/udi",
        "store: 5",
        'store: "/a\\0b"',
        "mirrors: [a]",
        "mirrors: {docker.io: ftp://x}",
        "mirrors: {docker.io: [5]}",
        "env: {A: [1]}",
        "env: {A: null}",
        "env: [A]",
        "modules: {mpi: {voluems: []}}",
        "strict_modes: 1",
        "volumes: /a:/b",
        "use_modules: [none]",
    ],
)
def test_a_wrong_value_names_its_file_and_its_key(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, line)
    key = "none" if line.startswith("use_modules") else line.partition(":")[0]
    assert str(tmp_path / "user.yaml") in str(caught.value) and key in str(caught.value)
    assert not any(word in str(caught.value) for word in ("literal", "convert", "argument must be"))  # Python's words


def test_a_file_that_is_no_mapping_in_yaml(tmp_path: Path) -> None:
    for text in ("a: [", "- a", "just words", "when: 2020-99-99", "[" * 5000, "a: !!python/name:os.x"):
        with pytest.raises(ConfigError, match=r"user\.yaml"):
            load(tmp_path, text)


def test_an_unknown_key_is_told_what_it_might_have_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="idle"):
        load(tmp_path, "idel: 5")


def test_right_values_and_where_they_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "me")
    site = "store: /global/$USER/udi\nvolumes: [/a:/a]\nenv: {A: site}\nmemory: 64MiB\nblock_size: 1M\nidle: 0"
    user = "volumes: [/b:/b]\nenv: {A: user, B: 5}\nplatform: linux/amd64/v3\nmirrors: {docker.io: http://m:5000}"
    config = load(tmp_path, user, site, UDI_IDLE="2.5", UDI_BACKENDS="fuse,extract", UDI_RECORD_DURATIONS="1")
    assert config.record_durations is True
    assert config.store == "/global/me/udi" and config.volumes == ("/a:/a", "/b:/b")
    assert config.env == {"A": "site", "B": "5"} and config.idle == 2.5 and config.backends == ("fuse", "extract")
    assert (config.memory, config.block_size) == (64 << 20, 1 << 20)
    assert config.mirrors == {"docker.io": ("http://m:5000",)}
    assert config.origins["idle"] == "UDI_IDLE" and config.origins["memory"] == str(tmp_path / "site.yaml")
    assert config.origins["ca_file"] == "default"


def test_a_user_whom_the_node_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert load_config({}).record_dir == "/.local/state/udi/records"
