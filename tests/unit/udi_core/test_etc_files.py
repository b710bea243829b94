"""The ``/etc`` of a task."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from udi_core import etc_files
from udi_core.errors import MountError
from udi_core.node_files import remove_tree


@pytest.fixture
def image(tmp_path: Path) -> Path:
    etc = tmp_path / "image/etc"
    (etc / "ssl").mkdir(parents=True)
    (etc / "passwd").write_text(f"root:x:0:0:root:/root:/bin/bash\nubuntu:x:{os.getuid()}:1:x:/x:/x\nodd line\n")
    (etc / "group").write_text("root:x:0:\nstaff:x:50:\n")
    (etc / "nsswitch.conf").write_text("passwd: files sss\nservices: db files\n")
    (etc / "ssl/cert.pem").write_text("certificate")
    (etc / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (etc / "mtab").symlink_to("/proc/mounts")
    (etc / "shadow").write_text("root:*::")
    (etc / "shadow").chmod(0)
    return tmp_path / "image"


def prepared(image: Path, home: str = "/home/ada") -> Path:
    target = image.parent / "copy"
    etc_files.prepare(str(image), str(target), home)
    return target


def test_the_caller_is_in_passwd_and_group_exactly_once(image: Path) -> None:
    copy = prepared(image)
    lines = [line.split(":") for line in (copy / "passwd").read_text().splitlines()]
    mine = [line for line in lines if len(line) > 2 and line[2] == str(os.getuid())]
    assert len(mine) == 1
    assert mine[0][3] == str(os.getgid()) and mine[0][5] == "/home/ada" and mine[0][6] == "/bin/sh"
    assert mine[0][0] == pwd.getpwuid(os.getuid()).pw_name
    groups = {line.split(":")[2]: line.split(":")[3] for line in (copy / "group").read_text().splitlines()}
    assert {str(gid) for gid in (os.getgid(), *os.getgroups())} <= groups.keys()
    assert groups[str(os.getgid())] == mine[0][0]
    assert grp.getgrgid(os.getgid()).gr_name in (copy / "group").read_text()
    assert "50" in groups


def test_the_node_s_files_take_the_place_of_the_image_s(image: Path) -> None:
    copy = prepared(image)
    for name in ("resolv.conf", "hosts"):
        if os.path.isfile(f"/etc/{name}"):
            assert not (copy / name).is_symlink()
            assert (copy / name).read_bytes() == Path("/etc", name).read_bytes()


def test_the_rest_is_the_image_s(image: Path) -> None:
    copy = prepared(image)
    assert (copy / "ssl/cert.pem").read_text() == "certificate"
    assert os.readlink(copy / "mtab") == "/proc/mounts"
    assert (copy / "shadow").exists()
    assert "services: db files" in (copy / "nsswitch.conf").read_text()
    assert "sss" not in (copy / "nsswitch.conf").read_text()


def test_an_image_without_etc(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    copy = prepared(tmp_path / "image")
    assert (copy / "passwd").read_text().startswith(pwd.getpwuid(os.getuid()).pw_name)


@pytest.mark.parametrize("target", ["/usr/etc", "usr/etc", "../../../usr/etc"])
def test_an_etc_that_is_a_link_stays_in_the_image(tmp_path: Path, target: str) -> None:
    image = tmp_path / "image"
    (image / "usr/etc").mkdir(parents=True)
    (image / "usr/etc/os-release").write_text("ID=odd\n")
    (image / "etc").symlink_to(target)
    assert (prepared(image) / "os-release").read_text() == "ID=odd\n"


def test_a_link_in_the_image_is_not_followed_out_of_it(tmp_path: Path) -> None:
    image, outside = tmp_path / "image", tmp_path / "outside"
    (image / "etc").mkdir(parents=True)
    outside.write_text("untouched")
    for name in ("passwd", "group", "hosts", "nsswitch.conf", "localtime", "timezone"):
        (image / "etc" / name).symlink_to(outside)
    prepared(image)
    assert outside.read_text() == "untouched"


def test_special_files_and_closed_directories(image: Path) -> None:
    os.mkfifo(image / "etc/fifo")
    (image / "etc/private").mkdir()
    (image / "etc/private").chmod(0o100)
    copy = prepared(image)
    assert not (copy / "fifo").exists()
    assert (copy / "private").is_dir()
    remove_tree(str(copy))
    assert not copy.exists()


def test_the_key_changes_with_who_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    key = etc_files.key("/home/ada")
    assert key == etc_files.key("/home/ada")
    assert key != etc_files.key("/home/bob")
    monkeypatch.setattr(os, "getgroups", lambda: [4711])
    assert key != etc_files.key("/home/ada")


def test_making_it_twice_is_harmless(image: Path) -> None:
    copy = prepared(image)
    (copy / "mark").write_text("")
    prepared(image)
    assert (copy / "mark").exists()
    assert sorted(path.name for path in image.parent.iterdir()) == ["copy", "image"]


def test_directories_where_files_should_be(image: Path) -> None:
    names = ("passwd", "group", "hosts", "hostname", "resolv.conf", "localtime", "nsswitch.conf", "timezone")
    for name in names:
        (image / "etc" / name).unlink(missing_ok=True)
        (image / "etc" / name / "inside").mkdir(parents=True)
    copy = prepared(image)
    assert (copy / "passwd").is_file() and (copy / "group").is_file()


def test_directories_deeper_than_python_s_stack(image: Path) -> None:
    deepest = str(image / "etc") + "/d" * 1100
    for end in range(len(str(image / "etc")), len(deepest) + 1, 200):  # makedirs itself recurses
        os.makedirs(deepest[:end], exist_ok=True)
    Path(deepest[:-2], "file").write_text("deep")
    copy = prepared(image)
    assert Path(str(copy) + "/d" * 1099, "file").read_text() == "deep"
    for each in (copy, image):
        remove_tree(str(each))
        assert not each.exists()


@pytest.mark.parametrize("limit", ["_MOST_BYTES", "_MOST_ENTRIES"])
def test_an_etc_that_is_no_configuration(image: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etc_files, limit, 3)
    with pytest.raises(MountError, match="too large"):
        prepared(image)
    assert [path.name for path in image.parent.iterdir()] == ["image"]


def test_what_a_killed_process_left_is_made_anew(image: Path) -> None:
    left = image.parent / f"copy.{os.getpid()}"
    left.mkdir()
    (left / "half").write_text("")
    assert not (prepared(image) / "half").exists()
    assert not left.exists()


def test_a_zone_that_only_the_image_has(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (image / "usr/share/zoneinfo").mkdir(parents=True)
    (image / "usr/share/zoneinfo/Nowhere").write_text("zone")
    monkeypatch.setattr(os.path, "realpath", lambda path: "/usr/share/zoneinfo/Nowhere")
    monkeypatch.setattr(etc_files, "HOST_FILES", ())
    assert os.readlink(prepared(image) / "localtime") == "/usr/share/zoneinfo/Nowhere"
