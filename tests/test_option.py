"""What an optimiser or a schedule would refuse in the middle of a run is refused, in one sentence, by its plan."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch

from backdoor_bench import api, option
from backdoor_bench.attack.badnet import BadNet
from backdoor_bench.bench import Bench
from backdoor_bench.errors import ConfigError
from backdoor_bench.store import Store
from backdoor_bench.sweep.compose import Composer
from backdoor_bench.sweep.grid import Grid
from backdoor_bench.sweep.plan import make_plan
from tests.sweep.conftest import SMALL, make_loader

OPTIM = "torch.optim"


class Plain(torch.optim.SGD):
    """Of a rate of its own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)


def recipe(optimizer: dict[str, Any] | None = None, **scheduler: Any) -> dict[str, Any]:
    """A node as ``conf/recipe`` has it."""
    node: dict[str, Any] = {"optimizer": {"_target_": f"{OPTIM}.SGD", "_partial_": True, "lr": 0.1} | (optimizer or {})}
    if scheduler:
        scheduler["_target_"] = f"{OPTIM}.lr_scheduler.{scheduler.pop('kind')}"
        node["scheduler"] = {"_partial_": True, **scheduler}
    return node


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (recipe({"lr": "fast"}), r"recipe\.optimizer\.lr=fast: expected a number$"),
        (recipe({"lr": None}), r"recipe\.optimizer\.lr=null: expected a number$"),
        (recipe({"lr": True}), r"recipe\.optimizer\.lr=True: expected a number$"),
        (recipe({"lr": -1}), r"recipe\.optimizer: Invalid learning rate: -1; change its options$"),
        (recipe({"nesterov": "yes"}), r"recipe\.optimizer\.nesterov=yes: expected true or false$"),
        (recipe({"fused": 3}), r"recipe\.optimizer\.fused=3: expected true or false or null$"),
        (recipe({"_target_": f"{OPTIM}.Adam", "betas": [0.9]}), r"betas=\[0\.9\]: expected a list of 2 values"),
        (recipe({"_target_": f"{OPTIM}.Adam", "betas": ["a", 0.9]}), r"expected a list of 2 values, each a number$"),
        (
            recipe({"lrr": 1}),
            r"unknown option of recipe\.optimizer \(torch\.optim\.SGD\) 'lrr'\. Did you mean lr\?.* "
            r"~recipe\.optimizer\.lrr removes it\.$",
        ),
        (recipe({"_target_": f"{OPTIM}.Adam", "momentum": 0.9}), r"of recipe\.optimizer \(torch\.optim\.Adam\) 'm"),
        (
            recipe({"_target_": f"{__name__}.Plain"}),
            rf"^recipe\.optimizer\.lr: {re.escape(__name__)}\.Plain takes no options; ~recipe\.optimizer\.lr removes",
        ),
        (recipe({"params": 1}), r"unknown option of recipe\.optimizer \(torch\.optim\.SGD\) 'params'"),
        (recipe({"_target_": f"{OPTIM}.SDG"}), r"recipe\.optimizer\._target_=torch\.optim\.SDG: there is no such"),
        (recipe(kind="CosineAnnealingLR", T_max="long"), r"recipe\.scheduler\.T_max=long: expected a whole number$"),
        (recipe(kind="CosineAnnealingLR", T_max=1.5), r"recipe\.scheduler\.T_max=1\.5: expected a whole number$"),
        (recipe(kind="CosineAnnealingLR", T_max=0), r"recipe\.scheduler: .*; change its options$"),
        (recipe(kind="CosineAnnealingLR"), r"recipe\.scheduler: .*T_max.*; change its options$"),
        (recipe(kind="OneCycleLR", max_lr=0.1, anneal_strategy="sine"), r"anneal_strategy=sine: expected cos or lin"),
        (recipe(kind="OneCycleLR", max_lr=[0.1, "b"]), r"expected a number or a list of values, each a number$"),
        (recipe(kind="ReduceLROnPlateau", factor=2.0), r"recipe\.scheduler: Factor should be < 1\.0"),
        (recipe(kind="StepLR", stepsize=3), r"unknown option of recipe\.scheduler .* Did you mean step_size"),
    ],
)  # fmt: skip
def test_one_sentence_says_what_was_expected(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        option.check(node, "recipe")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "node",
    [
        recipe({"momentum": 0.9, "lr": 1}),
        recipe({"_target_": f"{OPTIM}.Adam", "betas": [0.5, 0.9]}),
        recipe({"_target_": f"{OPTIM}.LBFGS", "line_search_fn": "strong_wolfe"}),
        recipe({"momentum": 0.9}, kind="OneCycleLR", max_lr=0.1),
        recipe(kind="CosineAnnealingLR", T_max=5.0),
        recipe(kind="MultiStepLR", milestones=[1, 2], gamma=0.5),
        recipe(kind="ReduceLROnPlateau", patience=10, min_lr=[0.0]),
        recipe(kind="CosineAnnealingLR", T_max=0) | {"epochs": 0},  # nothing is trained, so there is no schedule
        {"anything": [1, {"else": None}]},
    ],
)
def test_what_they_take_is_taken_and_stays_as_it_was(node: dict[str, Any]) -> None:
    before = copy.deepcopy(node)
    option.check(node, "recipe")
    assert node == before


def test_a_schedule_that_moves_by_step_is_looked_into() -> None:
    inner = {"_target_": f"{OPTIM}.lr_scheduler.StepLR", "_partial_": True, "step_size": 3}
    outer = {"_target_": "backdoor_bench.training.by_step", "_partial_": True, "scheduler": inner}
    node = recipe() | {"scheduler": outer}
    option.check(node, "")
    inner["step_size"] = "wide"
    with pytest.raises(ConfigError, match=r"^scheduler\.scheduler\.step_size=wide: expected a whole number$"):
        option.check(node, "")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.optimizer.lr=fast", r"^recipe\.optimizer\.lr=fast: expected a number$"),
        ("+recipe.optimizer.lrr=1", r"'lrr'\. Did you mean lr\?"),
        (
            "defense.stages.finetune.optimizer.momentum=much",
            r"^defense\.stages\.finetune\.optimizer\.momentum=much: expected a number$",
        ),
        ("recipe.optimizer.lr=nan", r"^recipe\.optimizer\.lr=nan: expected a finite number$"),
        ("recipe.scheduler=fast", r"^recipe\.scheduler=fast: expected a class's options or null$"),
        ("+recipe.weight_decay=0", r"^unknown option of recipe .*'weight_decay'"),
        ("++attack.siz=3", r"^unknown option of attack .* 'siz'\. Did you mean size\?"),
        ("attack.size=wide", r"^attack\.size=wide: expected a whole number or null$"),
        ("attack.size=0", r"^attack\.size=0: expected a side of 1 pixel or more"),
        ("++attack.labl=0", r"^unknown option of attack .*Did you mean label"),
        ("+defense.stages.finetune.rate=1", r"^unknown option of defense\.stages\.finetune .* 'rate'"),
        ("defense.stages.finetune=null", r"^stage 'finetune' of ft is None; choose one with stage@defense\.stages\."),
        ("+dataset.flip=true", r"^unknown option of dataset .* 'flip'"),
        ("dataset.mean=half", r"^dataset\.mean=half: expected a list of values, each a number$"),
        ("dataset.augmentation=strong", r"^dataset\.augmentation=strong: expected a class's options$"),
        ("model.width=2.5", r"^model\.width=2\.5: expected a whole number$"),
        ("model.width=-2", r"model\.width=-2: expected four numbers of blocks and a width, all positive"),
        ("model.blocks=3", r"^model\.blocks=3: expected a list of values, each a whole number or null$"),
        ("+model.depth=3", r"^unknown option of model .* 'depth'"),
    ],
)
def test_a_run_is_refused_when_it_is_planned(compose, tmp_path, override: str, message: str) -> None:
    bench = Bench(Store(tmp_path / "store"))
    with pytest.raises(ConfigError, match=message):
        bench.plan(compose("+attack=badnet", "+defense=ft", override))


def test_a_sweep_is_refused_before_it_starts(tmp_path) -> None:
    axes = {"dataset": ["digits"], "attack": ["badnet"], "defense": ["ft"], "recipe.optimizer.lr": [0.1, "fast"]}
    composer = Composer(make_loader(), [*SMALL, f"store_dir={tmp_path / 'store'}"])
    with pytest.raises(ConfigError, match=r"^digits badnet ft lr=fast: recipe\.optimizer\.lr=fast: expected a number$"):
        make_plan(Grid.read(axes), composer, Bench(Store(tmp_path / "store")))


def test_a_stage_of_no_epochs_is_planned(compose, tmp_path) -> None:
    Bench(Store(tmp_path / "store")).plan(compose("+attack=badnet", "+defense=ft", "defense.epochs=0"))


def test_a_handed_over_network_too() -> None:
    with pytest.raises(ConfigError, match=r"^stages\.finetune\.optimizer\.lr=fast: expected a number$"):
        api._method("ft", {"stages.finetune.optimizer.lr": "fast"})


class Mine(BadNet):
    """Somebody's attack, whose annotation is too narrow."""

    def __init__(self, strength: int = 1, **common: Any) -> None:
        super().__init__(**common)


def test_a_class_of_somebody_elses_takes_what_it_takes_and_has_its_bases_options() -> None:
    node = {"_target_": f"{__name__}.Mine", "strength": 0.5, "target_label": 1}
    assert option.make(node, "attack").target_label == 1
    with pytest.raises(ConfigError, match=r"^unknown option of attack .*'strenght'\. Did you mean strength\?"):
        option.make(node | {"strenght": 1}, "attack")


def test_a_wrong_interpolation_is_one_sentence(compose) -> None:
    with pytest.raises(ConfigError, match=r"^recipe\.epochs: Interpolation key 'sede' not found$"):
        compose("recipe.epochs=${sede}")
