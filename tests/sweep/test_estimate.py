"""What the store's records say: which runs are done, and how long runs of a kind took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backdoor_bench.errors import ConfigError, StoreError
from backdoor_bench.store import RECORD_FORMAT, Store
from backdoor_bench.sweep.estimate import Past, seconds_of

CONFIG = {
    "dataset": {"name": "digits"}, "model": {"width": 8}, "recipe": {"epochs": 15, "batch_size": 32},
    "preset": {"name": "default"}, "spc": None, "clean_ratio": 0.1,
}  # fmt: skip
FT = {"name": "ft", "epochs": 20}


def record(seconds: float, victim: float = 100.0, **changes: Any) -> dict[str, Any]:
    config = {**CONFIG, **changes.pop("config", {})}
    return {
        "format": RECORD_FORMAT, "status": "ok", "config": config, "architecture": "preact_resnet18",
        "attack": "badnet", "numerics": {"device": "cpu"}, "victim_was": "trained", "victim_seconds": victim,
        "seconds": seconds, **changes,
    }  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def expect(past: Past, device: str = "cpu", attack: str | None = "badnet", **config: Any) -> float | None:
    return past.seconds({**CONFIG, **config}, "preact_resnet18", attack, device)


def test_an_empty_store_knows_nothing(store: Store) -> None:
    past = Past.read(store)
    assert (past.states, expect(past, defense=FT)) == ({}, None)


def test_a_run_is_done_if_one_attempt_is_ok_and_failed_if_none_is(store: Store) -> None:
    for key, statuses in {"a": ["failed", "ok"], "b": ["ok", "failed"], "c": ["failed", "failed"]}.items():
        for status in statuses:
            store.add_record(key, record(1.0, status=status))
    assert Past.read(store).states == {"a": "done", "b": "done", "c": "failed"}


def test_seconds_are_the_median_of_a_kind_without_the_victims_training(store: Store) -> None:
    """Nor without what an attack learns before it: a defense's own seconds are those of its stages."""
    for key, seconds in {"a": 10.0, "b": 12.0, "c": 19.0}.items():
        stages = [{"name": "unlearn", "seconds": 4.0}, {"name": "finetune", "seconds": seconds - 4.0}]
        store.add_record(key, record(500.0, config={"defense": FT}, stages=stages))
    store.add_record("d", record(3.0, config={"defense": FT}, victim_was="found in the store"))
    past = Past.read(store)
    assert expect(past, defense=FT) == 11.0  # of 10, 12, 19 and 3
    assert expect(past, defense=FT, clean_ratio=0.05) == 11.0  # the nearest kind that there is
    assert expect(past, defense={**FT, "epochs": 5}) is None
    assert expect(past, device="cuda", defense=FT) is None
    assert expect(past) is None  # nobody trained a victim alone


def test_a_victim_costs_what_the_run_took_that_trained_it(store: Store) -> None:
    """With the trigger that the attack learned first; where that was another run, at least the seconds of the fit."""
    store.add_record("a", record(103.0, victim=100.0))
    store.add_record("b", record(903.0, victim=300.0, attack="combat"))
    store.add_record("c", record(2.0, victim=500.0, attack="wanet", victim_was="found in the store"))
    past = Past.read(store)
    assert expect(past) == 103.0
    assert expect(past, attack="combat") == 903.0
    assert expect(past, attack="wanet") == 500.0
    assert expect(past, attack="sig") == 500.0  # the median of all three


def test_a_record_of_a_newer_version_stops_a_sweep_that_asks_for_it(store: Store) -> None:
    store.add_record("a", record(1.0, format=RECORD_FORMAT + 1))
    assert list(Past.read(store, asked=["b"]).unreadable) == ["a"]
    with pytest.raises(StoreError, match=r"record a/0001\.json has format 2.*newer"):
        Past.read(store, asked=["a"])


def test_a_record_of_another_form_teaches_nothing(store: Store) -> None:
    store.add_record("a", {"format": RECORD_FORMAT, "status": "ok", "seconds": 5.0})
    past = Past.read(store)
    assert past.states == {"a": "done"}
    assert expect(past) is None


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [("25min", 1500), ("2h", 7200), ("1.5h", 5400), ("90s", 90), (" 1 d ", 86400), (None, None)],
)
def test_a_budget_is_a_duration(budget: str | None, seconds: float | None) -> None:
    assert seconds_of(budget, "sweep.budget") == seconds


@pytest.mark.parametrize("budget", ["soon", "25", "0min", "-2h", "2 weeks", "min"])
def test_a_budget_that_is_none_is_refused(budget: str) -> None:
    with pytest.raises(ConfigError, match=rf"sweep\.budget={budget}: expected a duration with its unit"):
        seconds_of(budget, "sweep.budget")
