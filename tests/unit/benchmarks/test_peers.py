"""The benchmark of other runtimes: which it finds, what it tells them, how it counts, and its table."""

from __future__ import annotations

import io
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import peers, runtimes, starts
from benchmarks.measure import RESULTS, Cost

PLACE = runtimes.Place(
    directory="/scratch/x",
    source="127.0.0.1:5000/bench/image:latest",
    secure="127.0.0.1:5001/bench/image:latest",
    squashfs="/store/image.squashfs",
    root=False,
)


def all_there(program: str) -> str | None:
    return f"/nonexistent/{program}"


def test_runtimes_are_found_by_their_programs() -> None:
    found, missing = runtimes.present(False, all_there)
    assert missing == [] and {"podman", "podman-hpc", "charliecloud", "enroot", "shifter"} <= {x.name for x in found}
    assert "podman-hpc" not in {each.name for each in runtimes.present(True, all_there)[0]}
    found, missing = runtimes.present(False, lambda program: None if program == "ch-image" else all_there(program))
    assert [each.name for each in missing] == ["charliecloud"]
    assert all(each.get for each in runtimes.RUNTIMES)


def test_the_front_of_udi_is_no_apptainer(tmp_path: Path) -> None:
    (tmp_path / "udi-front").touch()
    _, missing = runtimes.present(False, lambda program: str(tmp_path / program))
    assert "apptainer" in {each.name for each in missing}


@pytest.mark.parametrize("root", [True, False])
def test_recipes_are_whole(root: bool) -> None:
    for each in runtimes.RUNTIMES:
        recipe = each.recipe(replace(PLACE, root=root))
        for script in (recipe.pull, recipe.prepare, recipe.undo):
            shlex.split(script)  # quotes are closed
        if recipe.pull:
            assert PLACE.source in recipe.pull or PLACE.secure in recipe.pull or "#bench" in recipe.pull
        assert recipe.starts or (each.name == "shifter" and root)
        assert all(words[0] in (*each.programs, "sh") for words in recipe.starts.values())


def test_starts_are_counted_with_what_they_cost(tmp_path: Path) -> None:
    env = dict(os.environ)
    sample = starts.once(starts.program(["sh", "-c", "exit 0"], env, str(tmp_path)))
    assert sample.cpu > 0 and sample.wall > 0
    with pytest.raises(ChildProcessError, match="status 3"):
        starts.once(starts.program(["sh", "-c", "echo why >&2; exit 3"], env, str(tmp_path)))
    assert (tmp_path / "errors").read_text() == "why\n"
    assert starts.at_once(starts.program(["true"], env, str(tmp_path)), 3) > 0
    assert starts.in_a_row(starts.program(["true"], env, str(tmp_path)), count=5) > 0
    with pytest.raises(ChildProcessError, match="2 of 2"):
        starts.at_once(starts.program(["false"], env, str(tmp_path)), 2)


def test_tasks_in_a_row_end_when_patience_does(tmp_path: Path) -> None:
    began: list[int] = []
    start = starts.program(["true"], dict(os.environ), str(tmp_path))

    def counted() -> int:
        began.append(1)
        return start()

    assert starts.in_a_row(counted, count=100, patience=0) > 0
    assert len(began) == 2


def section() -> peers.Section:
    pull = Cost(wall=2.0, cpu=3.0, written=5_000_000, memory=70_000_000)
    slow = Cost(wall=8.0, cpu=9.0, written=50_000_000, memory=80_000_000)
    rows = [
        peers.Row(name=peers.UDI, runtime="udi", pull=pull, best=9, median=10, cpu=11, at_once=0.5, rate=100),
        peers.Row(name=peers.PYTHON, runtime="udi", pull=pull, best=3, median=4, cpu=3, at_once=0.2, rate=300),
        peers.Row(name="one FILE", runtime="one", pull=slow, best=40, median=50, cpu=30, at_once=2, rate=20),
        peers.Row(name="one DIRECTORY", runtime="one", pull=slow, best=6, median=7, cpu=5, at_once=1, rate=50),
        peers.Row(name="other", runtime="other", failed="no such thing"),
    ]
    return peers.Section(account="root", rows=rows, missing=["third: where it is"])


def test_the_table_shows_ratios_and_a_pull_once() -> None:
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(peers.table(section()))
    lines = {line.split("│")[1].strip(): line for line in drawn.getvalue().splitlines() if line.startswith("│")}
    assert "4.0x" in lines["one FILE"] and "5.0x" in lines["one FILE"] and "8.0" in lines["one FILE"]
    assert "8.0" not in lines["one DIRECTORY"] and "0.7x" in lines["one DIRECTORY"]
    assert set(lines["other"].replace("other", "")) <= set("│ ")


def test_a_section_travels_as_json() -> None:
    text = json.dumps(peers.document([section()]))
    assert peers.section_of(json.loads(text)["sections"][0]) == section()


def test_targets_are_shares_of_the_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESULTS, str(tmp_path / "figures"))
    assert not peers.judge([section()])
    figures = [json.loads(line) for line in (tmp_path / "figures").read_text().splitlines()]
    assert [(each["what"], each["peer"], each["reached"]) for each in figures] == [
        ("pull, root", "one", True),
        ("start from Python, root", "one FILE", True),
        ("start from Python, root", "one DIRECTORY", False),
    ]
