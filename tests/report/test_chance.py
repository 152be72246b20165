"""Networks that are no working classifiers: told in old records too, in no ranking, at the end of no list's head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from backdoor_bench.report import chance, frame, layout, ranking, summary
from backdoor_bench.report.figure import pick, scatter
from backdoor_bench.store import files
from tests.report.conftest import Write
from tests.report.figures import make
from tests.report.test_ranking import duel, runs


def old(path: Path) -> None:
    """Take from a record what older ones do not have."""
    record = json.loads(path.read_text())
    for name in ("sha256", "victim_at_chance", "at_chance"):
        record.pop(name, None)
    path.write_text(json.dumps(files.seal(record)))


def test_records_say_it_and_older_ones_are_told_by_data_set_and_accuracy(write: Write, folder: Path) -> None:
    write(key="a", victim_at_chance=False, at_chance=True, acc=0.5)  # what a record says counts
    old(write(key="b", repetition=1, acc=0.1058))
    old(write(key="c", repetition=2, before__acc=0.1, acc=0.1))
    old(write(key="d", repetition=3))
    old(write(key="e", dataset="mine", acc=0.1))
    old(write(key="f", repetition=4, status="failed", reason="no disk"))
    found = frame.load([folder])
    told = {row.key: (row.victim_at_chance, row.at_chance) for row in found.runs.itertuples()}
    assert told["a"] == (False, True)
    assert told["b"] == (False, True)
    assert told["c"] == (True, True)
    assert told["d"] == (False, False)
    assert all(value is pd.NA for value in (*told["e"], *told["f"]))
    assert list(found.runs.key[chance.victims(found.runs)]) == ["c"]
    assert list(found.runs.key[chance.purified(found.runs)]) == ["a", "b"]
    assert "1 of a victim at chance" in found.notes()
    assert "2 left at chance by the defense" in found.notes()


def test_a_parquet_file_of_before_is_read(write: Write, folder: Path, tmp_path: Path) -> None:
    old(write(key="b", acc=0.1058))
    target = tmp_path / "all.parquet"
    frame.to_parquet(frame.load([folder]), target)
    import pyarrow.parquet as pq

    table = pq.read_table(target)
    pq.write_table(table.drop_columns(["victim_at_chance", "at_chance"]), target)
    assert list(frame.load([target]).runs.at_chance) == [True]
    pq.write_table(table.drop_columns(["acc"]), target)
    with pytest.raises(frame.ConfigError, match="it has no column acc"):
        frame.load([target])


def test_cells_are_marked_and_their_means_keep_what_a_defense_left(write: Write, folder: Path) -> None:
    write(key="a", acc=0.9)
    write(key="b", acc=0.1, asr=0.0, ra=0.1, repetition=1, at_chance=True, victim_at_chance=False)
    write(key="c", defense="clp", victim="idle", seed=1, before__acc=0.1, victim_at_chance=True, at_chance=True)
    cells = summary.cells(frame.load([folder]).runs)
    found = {cell["defense_label"]: cell for cell in cells.to_dict("records")}
    assert {name: (cell["n"], cell["at_chance"]) for name, cell in found.items()} == {
        "none": (2, 1), "ft": (2, 1), "clp": (1, 1),
    }  # fmt: skip
    assert found["ft"]["acc_mean"] == pytest.approx(0.5)
    (table,) = layout.pivots(cells)
    lines = {row.cells[0][0]: row.cells[-1] for row in table.rows}
    assert lines == {"none (victim)": ("2 (1‡)",), "ft": ("2 (1‡)",), "clp": ("1‡",)}
    assert any("‡ at chance" in note and "(3 of 5 runs)" in note for note in table.notes)


def test_weak_and_at_chance_are_two_marks() -> None:
    assert layout.counted({"n": 3, "failed": 0, "weak": 3, "at_chance": 1}) == ("3† (1‡)",)


def test_no_victim_at_chance_ranks_anything(write: Write, folder: Path) -> None:
    write(key="a", defense="fp")
    write(key="b", defense="fp", victim="idle", seed=1, before__acc=0.1, victim_at_chance=True)
    write(key="c", defense="fp", victim="weak", seed=2, before__acc=0.1, victim_at_chance=True, weak_attack=True)
    kept, out = ranking.eligible(frame.load([folder]).runs)
    assert list(kept.key) == ["a"]
    assert out == {"of a weak attack": 1, "of a victim at chance": 1}


def test_a_defense_that_leaves_no_classifier_stands_last_and_beats_nothing(write: Write, folder: Path) -> None:
    """Although its ASR is 0, and in the second part all three criteria are lower."""
    write(key="a", defense="fp")
    write(key="b", defense="clp", acc=0.1, asr=0.0, ra=0.1, at_chance=True, arr=0.9, rdr=0.9)
    (medians,), (against,) = ranking.tables(frame.load([folder]).runs)
    assert [(row.cells[0][0], row.cells[-2][0]) for row in medians.rows] == [("fp", "1"), ("clp", "1‡")]
    assert any(note.startswith("‡ at chance") for note in medians.notes)
    assert [row.cells[-2:] for row in against.rows] == [[("no ‡",), ("no ‡",)]]
    scores = runs({"fp": 0.5, "broken": 0.1})
    scores["at_chance"] = scores.defense_label == "broken"
    found = duel(ranking.duels(scores), "broken", "fp")
    assert {verdict.result for verdict in found.verdicts.values()} == {"win"}
    assert not found.beats
    assert not found.lower_medians


def test_most_is_more_than_half() -> None:
    frame_ = pd.DataFrame({"defense": ["a"] * 2 + ["b"] * 3, "at_chance": [True, False, True, True, False]})
    assert list(chance.mostly(frame_)) == ["b"]


def test_figures_leave_such_victims_out_and_say_what_defenses_left() -> None:
    records = make(
        {}, {"victim_at_chance": True, "at_chance": True}, {"defense": "clp", "acc": 0.1, "asr": 0.0, "at_chance": True}
    )
    picked = pick.pick(records)
    assert list(picked.runs.defense) == ["ft", "clp"]
    assert "1 on victims at chance left out" in picked.notes
    assert "1 left at chance by the defense, where ASR says nothing (clp)" in picked.notes
    assert len(pick.pick(records, weak=True).runs) == 3
    assert pick.defenses(picked.runs) == ["ft", "clp"], "an ASR of 0 does not come first"


def test_no_defense_is_below_a_baseline_by_leaving_no_classifier() -> None:
    lower = {"asr": 0.0, "rdr": 0.0, "arr": -0.1}
    rows = [{"defense": "fp", "asr": 0.5, "rdr": 0.5, "arr": 0.0}, {"defense": "a", **lower}]
    assert scatter.better(make(*rows, {"defense": "clp", **lower, "at_chance": True}).runs, "fp") == {"a": 1}
    assert np.isclose(make(*rows).runs.arr.min(), -0.1)
