"""A cell never counts one draw on one victim twice, whatever the key says."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdoor_bench.report import frame, summary
from tests.report.conftest import Write

LATER, EARLIER = "2026-02-01T00:00:00Z", "2026-01-01T00:00:00Z"
LEFT_OUT = "runs that a later version of their method was run again for"
FINETUNE = "config__defense__stages__finetune"


def keys(folder: Path) -> list[str]:
    return sorted(frame.load([folder]).runs.key)


def test_of_two_versions_of_a_method_the_later_counts(write: Write, folder: Path) -> None:
    """A raised version changes the key and nothing else that a record says of itself."""
    write(key="old", asr=0.9, ra=0.1, started=EARLIER)
    write(key="new", asr=0.1, started=LATER)
    write(key="next", asr=0.3, started=LATER, repetition=1)
    records = frame.load([folder])
    assert sorted(records.runs.key) == ["new", "next"]
    assert f"1 {LEFT_OUT} not counted again" in records.notes()
    cell = next(c for c in summary.cells(records.runs).to_dict("records") if c["defense_label"] == "ft")
    assert (cell["n"], cell["asr_mean"]) == (2, pytest.approx(0.2))


def test_an_option_that_came_later_makes_no_other_run(write: Write, folder: Path) -> None:
    write(key="old", started=EARLIER)
    write(key="new", started=LATER, **{f"{FINETUNE}__patience": None})
    assert keys(folder) == ["new"]


@pytest.mark.parametrize(
    "changes",
    [
        {"repetition": 1}, {"victim": "v1"}, {"spc": 2, "clean_ratio": None}, {"config__clean_from": "all"},
        {"config__defense__use_validation": "train"}, {"defense": "fp"}, {f"{FINETUNE}__optimizer__lr": 0.1},
        {f"{FINETUNE}__epochs": 5}, {"config__defense__stages": {}}, {"variant": "cifar10 (jpeg)"},
    ],
)  # fmt: skip
def test_what_differs_in_anything_counts(write: Write, folder: Path, changes: dict[str, object]) -> None:
    write(key="a", started=EARLIER)
    write(key="b", started=LATER, **changes)
    assert keys(folder) == ["a", "b"]


def test_a_failed_run_replaces_no_good_one_and_is_replaced_by_one(write: Write, folder: Path) -> None:
    write(key="good", started=EARLIER)
    write(key="bad", started=LATER, status="failed", reason="no disk")
    write(key="bad1", repetition=1, started=EARLIER, status="failed", reason="no disk")
    write(key="good1", repetition=1, started=LATER)
    assert keys(folder) == ["bad", "good", "good1"]


def test_victims_alone_are_no_runs_of_each_other(write: Write, folder: Path) -> None:
    write(key="a", defense=None)
    write(key="b", victim="v1", defense=None)
    assert keys(folder) == ["a", "b"]


def test_victims_that_nothing_tells_apart_are_said(write: Write, folder: Path) -> None:
    """A raised version of an attack changes the victim's key alone; which of the two is meant no record says."""
    write(key="a")
    write(key="b", victim="v1", seed=1)
    assert "alike" not in " ".join(frame.load([folder]).notes())
    write(key="c", victim="v2")
    write(key="d", victim="v3", given={"sha256": "0" * 64})
    write(key="e", victim="v4", given={"sha256": "1" * 64})
    assert "2 victims alike in all that records say, the seed too" in " ".join(frame.load([folder]).notes())
