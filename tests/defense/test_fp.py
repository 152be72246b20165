from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench import config
from backdoor_bench.errors import ConfigError
from backdoor_bench.model import anatomy
from backdoor_bench.stage import DefenderView, Mask

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def dormant(network: nn.Module) -> nn.Module:
    """Every second feature of the head is far below the others and does nothing that clean images need."""
    _, head = anatomy.head(network)
    with torch.no_grad():
        head.weight[:, ::2] = 1e-3
    return network


def test_prunes_then_finetunes_what_is_left(dormant: nn.Module, defender_view: DefenderView, compose: Compose) -> None:
    node = compose("+defense=fp", "defense.epochs=2", "defense.stages.prune.step=1")["defense"]
    assert node["stages"]["finetune"]["epochs"] == 2
    name, head = anatomy.head(dormant)
    results = config.make(node).run(dormant, defender_view)
    prune = next(results)
    assert isinstance(prune.output, Mask)
    assert prune.changed
    pruned = prune.output.pruned[f"{name}.weight"]
    assert 0 < prune.output.report["pruned"] < head.in_features
    assert not head.weight[pruned].any()
    after = head.weight.detach().clone()
    finetune = next(results)
    assert (finetune.name, finetune.changed) == ("finetune", True)
    assert not head.weight[pruned].any()
    assert (head.weight != after)[~pruned].any()


def test_without_pruning_it_is_plain_finetuning(
    make_network: Callable[..., nn.Module], defender_view: DefenderView, compose: Compose
) -> None:
    torch.manual_seed(0)
    networks = [make_network()]
    networks.append(make_network())
    networks[1].load_state_dict(networks[0].state_dict())
    chosen = ["stage@defense.stages.prune=skip", "+defense=fp"], ["+defense=ft"]
    for network, overrides in zip(networks, chosen, strict=True):
        list(config.make(compose(*overrides, "defense.epochs=2")["defense"]).run(network, defender_view))
    for key, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[key]), key


def test_needs_validation_images(network: nn.Module, defender_view: DefenderView, compose: Compose) -> None:
    defense = config.make(compose("+defense=fp", "defense.use_validation=train")["defense"])
    view = replace(defender_view, validation=defender_view.validation[torch.arange(0)])
    with pytest.raises(ConfigError, match=r"'prune' of fp decides by validation accuracy.*use_validation=hold_out"):
        list(defense.run(network, view))
