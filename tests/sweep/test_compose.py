"""A configuration is the same, and has the same keys, whichever way it was composed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import pytest

from backdoor_bench import config
from backdoor_bench.bench import Bench
from backdoor_bench.errors import ConfigError
from backdoor_bench.store import Store
from backdoor_bench.sweep.compose import Composer, text
from backdoor_bench.sweep.interpolation import references

SMALL = ("device=cpu", "trainer.precision=32-true")


def by_hydra(point: Mapping[str, Any], *constants: str) -> dict[str, Any]:
    """What a person would type for this point, composed by Hydra as a whole."""
    words = []
    for name, value in point.items():
        if value != "none":
            words.append(f"{'+' if name in ('attack', 'defense') else ''}{name}={text(value)}")
    with hydra.initialize_config_dir(str(config.directory()), version_base="1.3"):
        return config.plain(hydra.compose("config", [*SMALL, *constants, *words]))


def grid() -> list[dict[str, Any]]:
    """Every method, recipes and presets that reach into them, ablations, schedules; each axis against each other."""
    attacks = [{"attack": "none"}, {"attack": "badnet", "attack.poisoning_ratio": 0.05}, {"attack": "combat"}]
    defenses = [
        {"defense": "none"},
        *({"defense": name} for name in ("ft", "fp", "anp", "clp", "unibp", "tsbd", "gradprune", "gradprune_oracle")),
        {"defense": "unit", "stage@defense.stages.tighten": "clip"},
        {"defense": "ft", "schedule@defense.stages.finetune.scheduler": "constant", "defense.epochs": 3},
    ]
    bases = [
        {"dataset": "digits"},
        {"dataset": "cifar10", "preset": "evidence", "seed": 4},
        {"dataset": "gtsrb", "model": "vgg19_bn", "recipe.epochs": 2, "clean_ratio": 0.1, "repetition": 3},
        {"dataset": "digits", "preset": "scale", "preset.width": 8, "schedule@recipe.scheduler": "cosine", "spc": 10},
    ]
    return [{**base, **attack, **defense} for base, attack, defense in itertools.product(bases, attacks, defenses)]


POINTS = grid()
SAMPLE = [(n * 29) % len(POINTS) for n in range(len(POINTS) // 6)]  # 29 is prime to their number: all axes mix


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(Store(tmp_path_factory.mktemp("store")))


def test_parts_put_together_are_what_hydra_composes(composer: Composer) -> None:
    for position in SAMPLE:
        assert composer.config(POINTS[position]) == by_hydra(POINTS[position]), POINTS[position]


def test_each_part_is_composed_once(make_composer) -> None:
    composer = make_composer()
    for point in POINTS:
        composer.config(point)
    # The bare one, the four bases, two attacks, ten defenses: scalars (seed, spc, ...) are set without Hydra.
    assert (len(POINTS), composer.composed) == (132, 1 + 4 + 2 + 10)


@pytest.mark.parametrize(
    ("point", "typed"),
    [
        ({"attack.poisoning_ratio": 0.1}, ("attack.poisoning_ratio=0.10",)),
        ({"attack.poisoning_ratio": "1e-1"}, ("attack.poisoning_ratio=.1",)),
        ({"spc": "10"}, ("spc=10",)),
        ({"spc": 10.0}, ("spc=10",)),
        ({"repetition": 2}, ("repetition=2",)),
        ({"defense.epochs": 5.0}, ("defense.epochs=5",)),
        ({"clean_ratio": 0.05}, ()),
        ({"preset": "default"}, ()),
        ({"defense.stages.finetune.optimizer.lr": 0.002}, ("defense.stages.finetune.optimizer.lr=2e-3",)),
    ],
)
def test_keys_do_not_depend_on_how_a_value_is_written(
    composer: Composer, bench: Bench, point: dict[str, Any], typed: tuple[str, ...]
) -> None:
    run = {"dataset": "digits", "attack": "badnet", "defense": "ft"}
    ours = bench.plan(composer.config({**run, **point}))
    theirs = bench.plan(_typed(run, typed))
    assert (ours.victim_key, ours.key) == (theirs.victim_key, theirs.key)


def _typed(run: Mapping[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    with hydra.initialize_config_dir(str(config.directory()), version_base="1.3"):
        names = [f"dataset={run['dataset']}", f"+attack={run['attack']}", f"+defense={run['defense']}"]
        return config.plain(hydra.compose("config", [*SMALL, *names, *words]))


def test_a_scalar_that_something_interpolates_is_resolved_anew(make_composer) -> None:
    composer = make_composer("recipe.epochs=${repetition}")
    assert [composer.config({"repetition": n})["recipe"]["epochs"] for n in (2, 3)] == [2, 3]


@pytest.mark.parametrize(
    ("file", "reaches"),
    [
        ("# @package _global_\nattack:\n  _target_: x.Y\nrecipe:\n  epochs: 99\n", 99),
        ("# @package _global_\ndefaults:\n  - override /preset: scale\n  - _self_\nattack:\n  _target_: x.Y\n", 10),
    ],
)
def test_an_attack_that_reaches_beyond_its_own_node_is_composed_as_a_whole(
    make_composer, tmp_path: Path, file: str, reaches: int
) -> None:
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "mine.yaml").write_text(file)
    place = f"hydra.searchpath=[file://{tmp_path}]"
    composer = make_composer(place)
    mine = {"dataset": "digits", "attack": "mine"}
    for point in (mine, {**mine, "seed": 1}, {"attack": "badnet"}):
        with hydra.initialize_config_dir(str(config.directory()), version_base="1.3"):
            words = [f"{'+' if name == 'attack' else ''}{name}={value}" for name, value in point.items()]
            expected = hydra.compose("config", [*SMALL, f"store_dir={tmp_path / 'store'}", place, *words])
            assert composer.config(point) == config.plain(expected)
    assert composer.config(mine)["recipe"]["epochs"] == reaches


def test_configurations_share_what_they_have_in_common(composer: Composer) -> None:
    point = {"dataset": "digits", "attack": "badnet", "defense": "ft"}
    first, second = (composer.config({**point, "repetition": n}) for n in (0, 1))
    assert (first["repetition"], second["repetition"]) == (0, 1)
    assert first["defense"] is second["defense"]
    assert first["recipe"] is second["recipe"]


def test_how_runs_are_started_is_no_part_of_them(composer: Composer) -> None:
    assert not {"hydra", "sweep"} & composer.config({}).keys()


@pytest.mark.parametrize(
    ("raw", "reads"),
    [
        ({"a": 1, "b": "plain"}, set()),
        ({"a": "${recipe.epochs}"}, {"recipe"}),
        ({"a": ["x ${dataset[mean]}", "${seed}"]}, {"dataset", "seed"}),
        ({"a": "${length:unibp_epochs,20}"}, {"preset", "recipe"}),
        ({"a": "${length:unibp_epochs,${model.width}}"}, {"preset", "recipe", "model"}),
        ({"a": "${oc.decode:${oc.env:X,true}}"}, set()),
        ({"a": "${.b}", "b": 1}, set()),
        ({"a": {"b": "${..c}"}, "c": 1}, set()),
        ({"a": "${..seed}"}, {"seed"}),
        ({"a": "${somebodys.own:1}"}, None),
        ({"a": "${${name}}"}, None),
    ],
)
def test_what_a_node_reads(raw: dict[str, Any], reads: set[str] | None) -> None:
    assert references(raw, ("recipe",)) == reads


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5, "badnet", "1e-3", "a,b", "it's", [1, "a", None], {"a": 1}, "timm:resnet18"]
)
def test_a_value_is_written_so_that_hydra_reads_it_back(value: Any) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([f"x={text(value)}"])
    read = override.value()
    assert not override.is_sweep_override()
    assert (1e-3 if value == "1e-3" else value) == getattr(read, "text", read)


def test_an_option_that_is_not_there_is_one_message(composer: Composer) -> None:
    with pytest.raises(ConfigError, match=r"poisoning_ration"):
        composer.config({"attack": "badnet", "attack.poisoning_ration": 0.1})
