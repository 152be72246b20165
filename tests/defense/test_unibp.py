from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench import config
from backdoor_bench.defense import Defense
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.stage import DefenderView, Mask

Compose = Callable[..., dict[str, Any]]
SHORT = ("+defense=unibp", "defense.epochs=2", "++preset.lengths.unibp_rectify_epochs=1")


@pytest.fixture
def unibp(compose: Compose) -> Callable[..., Defense]:
    def make(*overrides: str) -> Defense:
        made = config.make(compose(*SHORT, *overrides)["defense"])
        assert isinstance(made, Defense)
        return made

    return make


def test_the_published_values(compose: Compose) -> None:
    # Of CIFAR-10, whose recipe names no lengths of its own.
    stages = compose("dataset=cifar10", "+defense=unibp", lengths={})["defense"]["stages"]
    assert list(stages) == ["reset", "mask", "prune", "masked_finetune"]
    assert (stages["reset"]["gamma"], stages["reset"]["beta"]) == (1, 0)
    assert (stages["mask"]["lam"], stages["mask"]["k"], stages["mask"]["epochs"]) == (0.05, 0.05, 1)
    assert (stages["prune"]["value"], stages["prune"]["noise"]) == (0, 0.01)
    tuning = stages["masked_finetune"]
    assert (tuning["epochs"], tuning["optimizer"]["lr"], tuning["optimizer"]["momentum"]) == (20, 1e-3, 0.9)


def test_options_of_the_card_that_the_published_setting_leaves_out(
    unibp: Callable[..., Defense], network: nn.Module, defender_view: DefenderView, compose: Compose
) -> None:
    assert not {"fisher", "k_select", "max_drop"} & set(compose("+defense=unibp")["defense"]["stages"]["mask"])
    options = ("fisher=sample_ce", "k_select=val", "max_drop=1")
    defense = unibp(*(f"+defense.stages.mask.{option}" for option in options))
    *_, last = defense.run(network, defender_view)
    assert last.name == "masked_finetune"
    without = replace(defender_view, validation=defender_view.validation[torch.zeros(0, dtype=torch.int64)])
    with pytest.raises(ConfigError, match="stage 'mask' of unibp decides by validation accuracy"):
        defense.check(network, without)


def test_only_pruning_and_fine_tuning_touch_the_network_and_pruned_entries_stay_to_the_bit(
    unibp: Callable[..., Defense], network: nn.Module, defender_view: DefenderView
) -> None:
    changed, mask, pruned = {}, None, {}
    for result in unibp("defense.stages.masked_finetune.optimizer.lr=0.1").run(network, defender_view):
        changed[result.name] = result.changed
        mask = result.output if isinstance(result.output, Mask) else mask
        if result.name == "prune":
            pruned = {name: value.detach().clone() for name, value in network.named_parameters()}
    assert changed == {"reset": False, "mask": False, "prune": True, "masked_finetune": True}
    assert mask is not None
    assert mask.count == int(0.05 * 212)
    values = torch.cat([pruned[name][entries] for name, entries in mask.pruned.items()])
    assert (values != 0).all()
    assert values.abs().max() < 0.05
    for name, value in network.named_parameters():
        frozen = mask.pruned.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[frozen], pruned[name][frozen])
        if name.endswith("conv2.weight"):
            assert not torch.equal(value, pruned[name])


@pytest.mark.parametrize(
    ("skipped", "changed"),
    [
        (["reset"], ["prune", "masked_finetune"]),
        (["mask", "prune"], ["masked_finetune"]),
        (["prune"], ["masked_finetune"]),
        (["masked_finetune"], ["prune"]),
    ],
)
def test_ablations(
    unibp: Callable[..., Defense],
    network: nn.Module,
    defender_view: DefenderView,
    skipped: list[str],
    changed: list[str],
) -> None:
    defense = unibp(*(f"stage@defense.stages.{name}=skip" for name in skipped))
    assert [result.name for result in defense.run(network, defender_view) if result.changed] == changed


def test_a_network_without_batch_norm_is_refused_before_any_work(
    unibp: Callable[..., Defense], defender_view: DefenderView
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(IncompatibleError, match="unibp needs BatchNorm2d in the network, and Sequential has none"):
        next(unibp().run(network, defender_view))
