"""An ablation has a name of its own, made of what differs."""

from __future__ import annotations

from pathlib import Path

from backdoor_bench.report import frame, label
from tests.report.conftest import Write

FINETUNE = "config__defense__stages__finetune"


def labels(folder: Path, column: str = "defense_label") -> dict[str, str]:
    runs = label.add(frame.load([folder]).runs)
    return dict(zip(runs.key, runs[column], strict=True))


def test_most_runs_are_the_method_and_others_name_what_differs(write: Write, folder: Path) -> None:
    write(key="a")
    write(key="b", repetition=1)
    write(key="c", **{f"{FINETUNE}__optimizer__lr": 0.1})
    write(key="d", config__defense__epochs=5, **{f"{FINETUNE}__epochs": 5})
    write(key="e", config__defense__stages={})
    write(key="f", defense="fp")
    assert labels(folder) == {
        "a": "ft",
        "b": "ft",
        "c": "ft [finetune.optimizer.lr=0.1]",
        "d": "ft [epochs=5]",  # the stage's length is the defense's: said once
        "e": "ft [without finetune]",
        "f": "fp",
    }


def test_of_equally_many_the_earliest_is_the_method(write: Write, folder: Path) -> None:
    write(key="a", config__defense__epochs=5, started="2026-02-01T00:00:00Z")
    write(key="b")
    assert labels(folder) == {"a": "ft [epochs=5]", "b": "ft"}


def test_a_victim_of_other_training_is_another_attack_label(write: Write, folder: Path) -> None:
    write(key="a")
    write(key="b", defense="fp")
    write(key="c", victim="v1", config__recipe__epochs=30)
    write(key="d", attack=None, config__attack=None)
    assert labels(folder, "attack_label") == {
        "a": "badnet", "b": "badnet", "c": "badnet [recipe.epochs=30]", "d": "no attack",
    }  # fmt: skip


def test_other_presets_and_networks_are_no_ablations_of_each_other(write: Write, folder: Path) -> None:
    write(key="a")
    write(key="b", preset="evidence", config__recipe__epochs=10, config__defense__epochs=5)
    write(key="c", config__model__width=16, config__recipe__epochs=10)
    assert set(labels(folder).values()) == {"ft"}
    assert set(labels(folder, "attack_label").values()) == {"badnet"}
    assert labels(folder, "network")["c"] == "preact_resnet18 width 16"


def test_a_long_difference_is_cut_and_stays_unique(write: Write, folder: Path) -> None:
    write(key="a")
    write(key="b", defense="ft", repetition=1)
    for key, value in (("c", "x" * 200), ("d", "x" * 200 + "y")):
        write(key=key, config__defense__instead_of=value)
    found = labels(folder)
    assert found["c"] != found["d"]
    assert all(len(name) < 120 for name in found.values())
