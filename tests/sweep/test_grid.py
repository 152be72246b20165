"""What a sweep file's words mean: points, narrowing, settings, and messages for what is misspelt."""

from __future__ import annotations

from typing import Any

import pytest

from backdoor_bench.errors import ConfigError
from backdoor_bench.sweep.grid import Grid, of_victim, root, values

AXES = {"attack": ["badnet", "wanet"], "defense": ["none", "ft"], "spc": [2, 10], "repetition": "range(3)"}


def points(grid: Grid) -> list[dict[str, Any]]:
    return list(grid.points())


def test_a_run_without_a_defense_is_one_whatever_its_regime() -> None:
    found = points(Grid.read(AXES))
    assert len(found) == 2 * (1 + 2 * 3)
    assert [p for p in found if p["defense"] == "none"] == [
        {"attack": "badnet", "defense": "none"},
        {"attack": "wanet", "defense": "none"},
    ]


def test_a_clean_network_has_no_options_of_an_attack() -> None:
    grid = Grid.read({"attack": [None, "badnet"], "attack.poisoning_ratio": [0.1, 0.05], "seed": [0]})
    assert points(grid) == [
        {"attack": "none", "seed": 0},
        {"attack": "badnet", "attack.poisoning_ratio": 0.1, "seed": 0},
        {"attack": "badnet", "attack.poisoning_ratio": 0.05, "seed": 0},
    ]


def test_extra_blocks_change_add_and_take_away_axes_and_repeat_nothing() -> None:
    grid = Grid.read({"attack": ["badnet"], "spc": [2]}, extra=[{"spc": None, "clean_ratio": [0.1]}, {"seed": [1]}, {}])
    assert points(grid) == [
        {"attack": "badnet", "spc": 2},
        {"attack": "badnet", "clean_ratio": 0.1},
        {"attack": "badnet", "spc": 2, "seed": 1},
    ]


def test_an_excluded_line_must_fit_in_all_its_values() -> None:
    grid = Grid.read({"attack": ["sig", "badnet"], "seed": [0, 1]}, exclude=[{"attack": ["sig"], "seed": [1]}])
    assert [(p["attack"], p["seed"]) for p in points(grid)] == [("sig", 0), ("badnet", 0), ("badnet", 1)]


def test_narrowing_keeps_the_row_without_a_defense() -> None:
    found = points(Grid.read(AXES).narrowed({"attack": ["badnet"], "spc": ["10"], "repetition": [0]}))
    assert found == [
        {"attack": "badnet", "defense": "none"},
        {"attack": "badnet", "defense": "ft", "spc": 10, "repetition": 0},
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("range(3)", (0, 1, 2)),
        ("0.1,0.05", (0.1, 0.05)),
        ("badnet", ("badnet",)),
        ("choice('a,b',c)", ("a,b", "c")),
        (0.1, (0.1,)),
        ([None, 2], (None, 2)),
        ([[1, 2], [3]], ([1, 2], [3])),
    ],
)
def test_values_in_lists_and_in_hydras_words(given: Any, expected: tuple[Any, ...]) -> None:
    assert values("spc", given) == expected


def test_settings_apply_to_what_fits_and_give_way_to_what_is_typed() -> None:
    line = {"when": {"defense": ["ft"]}, "set": {"defense.epochs": 20, "clean_ratio": 0.005}}
    grid = Grid.read({"defense": ["none", "ft"]}, settings=[line])
    assert [grid.settings_of(p) for p in points(grid)] == [{}, {"defense.epochs": 20, "clean_ratio": 0.005}]
    typed = grid.with_axes({"defense.epochs": [1]}, ["clean_ratio"])
    assert [typed.settings_of(p) for p in points(typed)] == [{}, {}]
    assert points(typed)[1] == {"defense": "ft", "defense.epochs": 1}


def test_patterns_stand_for_the_names_that_fit() -> None:
    grid = Grid.read({"defense": ["none", "f*"]}).with_names({"defense": ["fp", "ft", "unit"]})
    assert grid.axes == {"defense": ("none", "fp", "ft")}


@pytest.mark.parametrize(
    ("axis", "place"),
    [("stage@defense.stages.mask", "defense"), ("attack.size", "attack"), ("+defense.x", "defense"), ("spc", "spc")],
)
def test_what_an_axis_belongs_to(axis: str, place: str) -> None:
    assert root(axis) == place


def test_a_victim_is_what_neither_defense_nor_regime_changes() -> None:
    point = {"attack": "badnet", "seed": 1, "defense": "ft", "stage@defense.stages.x": "skip", "spc": 2}
    assert of_victim(point) == {"attack": "badnet", "seed": 1}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"atack": ["badnet"]}, r"unknown axis in sweep\.only 'atack'\. Did you mean attack"),
        ({"attack": ["badnett"]}, r"unknown value in sweep\.only\.attack 'badnett'\. Did you mean badnet"),
        ({"spc": [100]}, r"unknown value in sweep\.only\.spc '100'.*Known: 10, 2"),
    ],
)
def test_narrowing_to_what_is_not_in_the_sweep_is_refused(only: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid.read(AXES).narrowed(only)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"axes": {"spc": []}}, r"axis spc: expected a list of values.*got \[\]"),
        ({"axes": {"spc": {"from": 2}}}, r"axis spc: expected a list of values"),
        ({"axes": {"spc": "interval(0,1)"}}, r"axis spc: interval\(0,1\) has no end"),
        ({"axes": {"spc": [2]}, "exclude": [{"scp": [2]}]}, r"exclude or settings 'scp'\. Did you mean spc"),
        ({"axes": {"spc": [2]}, "settings": [{"when": {}}]}, r"settings: expected lines of when and set, got when"),
    ],
)  # fmt: skip
def test_a_grid_of_another_form_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid.read(**spec)
