"""An ablation has a name of its own, made of what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backdoor_bench import config as configuration
from backdoor_bench.report import configured, frame, label
from backdoor_bench.suspect.composed import compose
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
    write(key="b", preset="another", config__recipe__epochs=10, config__defense__epochs=5)
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


def composed(*overrides: str) -> dict[str, Any]:
    """The parts of a record that a run with these overrides has."""
    config = configuration.plain(compose("dataset=cifar10", "preset=fast", *overrides))
    return {
        "preset": config["preset"]["name"], "architecture": "preact_resnet18", "defense": config["defense"]["name"],
        "config": config,
    }  # fmt: skip


def test_the_configured_options_are_the_method_however_few_runs_have_them(write: Write, folder: Path) -> None:
    ours, other = ("+attack=badnet", "+defense=tsbd"), "defense.stages.activeness_finetune.optimizer.lr=0.002"
    write(key="a", **composed(*ours))
    for number in range(3):
        write(key=f"b{number}", repetition=number, **composed(*ours, other, "recipe.epochs=24"))
    assert labels(folder)["a"] == "tsbd"
    assert labels(folder)["b0"] == "tsbd [activeness_finetune.optimizer.lr=0.002]"
    assert labels(folder, "attack_label") == {
        "a": "badnet", **{f"b{number}": "badnet [recipe.epochs=24]" for number in range(3)},
    }  # fmt: skip


def test_a_label_means_the_same_without_the_runs_beside_it(write: Write, folder: Path) -> None:
    write(key="a", **composed("+attack=badnet", "+defense=ft", "defense.stages.finetune.optimizer.lr=0.5"))
    assert labels(folder) == {"a": "ft [finetune.optimizer.lr=0.5]"}


def test_a_presets_own_values_are_in_its_name(write: Write, folder: Path) -> None:
    scale = ("preset=scale", "preset.width=8", "preset.epochs=3", "+attack=badnet", "+defense=ft")
    write(key="a", **composed(*scale))
    write(key="b", victim="v1", **composed(*scale, "recipe.epochs=4"))
    assert labels(folder, "attack_label") == {"a": "badnet", "b": "badnet [recipe.epochs=4]"}


def test_an_option_that_a_record_does_not_know_yet_is_no_difference(write: Write, folder: Path) -> None:
    """Records outlive options: one that came later is none of theirs, and a null says that there is nothing."""
    record = composed("+attack=badnet", "+defense=tsbd")
    del record["config"]["defense"]["stages"]["activeness_finetune"]["norm"]
    record["config"]["defense"]["stages"]["unlearn"]["removed_since"] = None
    write(key="a", **record)
    assert labels(folder) == {"a": "tsbd"}


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("~defense.stages.prune", "fp [without prune]"),
        ("stage@defense.stages.prune=skip", "fp [prune=Skip]"),
        ("defense.stages.finetune.scheduler=null", "fp [finetune.scheduler=null]"),
    ],
)
def test_what_was_taken_away_is_said_once(write: Write, folder: Path, override: str, text: str) -> None:
    write(key="a", **composed("+attack=badnet", "+defense=fp", override))
    assert labels(folder) == {"a": text}


@pytest.mark.parametrize("defense", ["ft", "unit"])
def test_what_follows_a_length_is_not_said_again(write: Write, folder: Path, defense: str) -> None:
    """FT's schedule ends with its epochs, UNIT's steps are them, and a one-cycle rate is the optimiser's."""
    write(key="a", **composed("+attack=badnet", f"+defense={defense}", "defense.epochs=7", "recipe.optimizer.lr=0.3"))
    assert labels(folder) == {"a": f"{defense} [epochs=7]"}
    assert labels(folder, "attack_label") == {"a": "badnet [recipe.optimizer.lr=0.3]"}


def test_what_conf_does_not_have_is_not_known() -> None:
    assert configured.defense("cifar10", "fast", "ft") is not None
    for place in (("nowhere", "fast", "ft"), ("cifar10", "made_up", "ft"), ("cifar10", "fast", "nothing")):
        assert configured.defense(*place) is None
    assert configured.attack("cifar10", "fast", "preact_resnet18", None) is not None
    assert configured.attack("cifar10", "fast", "preact_resnet18", "nothing") is None
    assert configured.attack("cifar10", "fast", "some_network", "badnet") is None


def test_the_label_that_stands_for_a_method() -> None:
    labels = pd.Series(["ft [lr=1]", "ft [lr=2]", "ft [lr=2]", "fp", "ftsam"])
    assert label.own(labels, "ft") == "ft [lr=2]"
    assert label.own(labels[:2], "ft") == "ft [lr=1]"  # of equally many, by letter
    assert label.own(labels, "fp") == "fp"
    assert label.own(labels, "anp") is None
