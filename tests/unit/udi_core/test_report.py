"""Records added up, and drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from udi_core.chart import draw, seconds
from udi_core.report import read, summarise


def line(by: str, image: str = "sha256:a", node: str = "n1", **fields: Any) -> str:
    return json.dumps({"by": by, "image": image, "node": node, "reference": f"docker:{image}", "uid": 1, **fields})


LINES = [
    line("pull", start=10, seconds=60),
    line("mount", start=70, seconds=0.5),
    line("run", start=71, setup=0.02),
    line("parsl", start=72, setup=0.04, seconds=5, exit=0, cpu=4, rss=1 << 20),
    line("parsl", "sha256:b", "n2", start=73, setup=0.06, seconds=7, exit=-9, cpu=1, rss=1 << 10),
    line("jupyter", "sha256:b", "n2", uid=2, start=74, seconds=1, exit=0),
]


def test_sums() -> None:
    document = summarise(LINES).document()
    assert (document["lookups"], document["unique_images"], document["unique_users"]) == (4, 2, 2)
    assert (document["unique_nodes"], document["first"], document["last"]) == (2, 10, 74)
    assert document["total"]["failed"] == 1
    assert document["total"]["median_setup"] == 0.04
    first, second = document["by_image"]
    assert first["name"] == "sha256:a"
    assert first["seconds"] == {"pull": 60, "mount": 0.5, "setup": pytest.approx(0.06), "task": 5}
    assert (first["mounts"], first["cpu"], first["rss"]) == (1, 4, 1 << 20)
    assert second["tasks"] == 2
    assert [group["name"] for group in document["by_node"]] == ["n1", "n2"]


@pytest.mark.parametrize(
    "bad",
    ["", "{", "[]", "7", "null", "{}", line("run"), line("run", start="soon"), '{"by":1,"image":"x","node":"n"}'],
)
def test_lines_that_are_none(bad: str) -> None:
    report = summarise([*LINES, bad])
    assert report.unreadable == 1
    assert report.total.tasks == 4


def test_images_have_the_names_that_people_type() -> None:
    python = line("run", "sha256:c", start=1, reference="docker://docker.io/library/python:3.12-slim")
    assert [group.name for group in summarise([python]).images] == ["python:3.12-slim"]


def test_nothing() -> None:
    report = summarise([])
    assert report.document()["lookups"] == 0
    ET.fromstring(draw(report))


def test_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "n1.0.1.jsonl").write_text(LINES[0] + "\n")
    (tmp_path / "records" / ".n1.part").write_text(LINES[0] + "\n")
    (tmp_path / "live").write_text("\n".join(LINES[1:3]) + "\n")
    paths = [f"{tmp_path}/records", f"{tmp_path}/live", f"{tmp_path}/gone"]
    assert [json.loads(text)["by"] for text in read(paths)] == ["pull", "mount", "run"]


def test_the_picture_is_svg_with_a_bar_for_each() -> None:
    odd = line("parsl", 'sha256:"<&', "n<3", start=80, seconds=3)
    picture = draw(summarise([*LINES, odd, line("pull", "sha256:c", "login", start=1, seconds=9)]))
    root = ET.fromstring(picture)
    titles = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "sha256:a: pulling 60 s" in titles
    assert 'docker:sha256:"<&: in the task 3 s' in titles
    assert "n2: in the task 8 s" in titles
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "8.06 s, 2 tasks; UDI's 60 ms" in texts and "9 s, 0 tasks" in texts


def test_a_picture_of_many_nodes_stays_a_picture() -> None:
    report = summarise(line("parsl", node=f"n{number}", start=1, seconds=number) for number in range(10_000))
    picture = draw(report)
    assert len(picture) < 50_000
    assert "and 9960 more" in picture


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.00312, "3.12 ms"), (59.4, "59.4 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_lengths_of_time(value: float, text: str) -> None:
    assert seconds(value) == text
