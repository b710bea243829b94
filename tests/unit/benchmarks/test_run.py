"""The run of all benchmarks: its table, its results file, and what it does with one that cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import measure


def test_every_benchmark_says_what_it_compares() -> None:
    found = runner.benchmarks()
    assert {"enter", "entries", "flatten", "parsl"} <= set(found)
    assert all(found.values())


def test_a_run_ends_with_a_table_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "_RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(runner, "benchmarks", lambda: {"record": "what", "broken": "no such module"})
    assert runner.main(["record", "broken"]) == 1
    document = json.loads((tmp_path / "results.json").read_text())
    record, broken = document["benchmarks"]
    assert record["figures"][0]["unit"] and record["status"] in (0, 1)
    assert broken["why"].startswith("failed") and broken["figures"] == []
    assert document["machine"]["cpus"] and document["machine"]["commit"]
    shown = capsys.readouterr().out
    assert "FAILED" in shown and "target" in shown


def test_figures_are_kept_as_they_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures"
    monkeypatch.setenv(measure.RESULTS, str(path))
    assert measure.verdict("fast enough", 5, 6, " ms")
    assert not measure.verdict("slow", 0.5, 0.8, at_least=True, peer="peer", beside=1.0)
    assert measure.against("wall", 10, 40, 0.4, " s", peer="peer")
    assert not measure.against("rate", 10, 40, 0.8, peer="peer", at_least=True)
    with pytest.raises(SystemExit) as ended:
        measure.need("no-such-program-at-all")
    assert ended.value.code == measure.NOT_RUN
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each.get("reached") for each in lines] == [True, False, True, False, None]
    assert "no-such-program-at-all" in lines[-1]["not_run"]
    result = {
        "name": "x",
        "status": measure.NOT_RUN,
        "seconds": 1,
        "load": 1,
        "why": "needs root",
        "figures": lines[:4],
    }
    assert len(runner.table([result]).rows) == 5
