from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench import config
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.stage import DefenderView

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def planted(make_network: Callable[..., nn.Module]) -> nn.Module:
    """Sixteen and more channels a layer; channel 5 of one BatchNorm amplifies its filter forty times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make_network(width=16).eval()
    network.get_submodule("backbone.layer2.0.bn2").weight.data[5] = 40.0
    return network


def run(network: nn.Module, view: DefenderView, node: dict[str, Any]) -> set[str]:
    """Run the defense; returns the names of the tensors that it changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    results = list(config.make(node).run(network, view))
    assert [(result.name, result.changed) for result in results] == [("score", False), ("mask", False), ("prune", True)]
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def test_removes_the_planted_channel(planted: nn.Module, defender_view: DefenderView, compose: Compose) -> None:
    norm = planted.get_submodule("backbone.layer2.0.bn2")
    norm.bias.data.fill_(0.1)
    changed = run(planted, defender_view, compose("+defense=clp")["defense"])
    assert changed >= {"backbone.layer2.0.bn2.weight", "backbone.layer2.0.bn2.bias"}
    assert {name.rsplit(".", 1)[1] for name in changed} <= {"weight", "bias"}
    assert all(".bn" in name for name in changed)
    assert norm.weight[5] == norm.bias[5] == 0
    assert norm.weight[:5].all()


def test_uses_no_data(planted: nn.Module, defender_view: DefenderView, compose: Compose) -> None:
    none = defender_view.train[torch.arange(0)]
    blind, seeing = copy.deepcopy(planted), copy.deepcopy(planted)
    run(blind, replace(defender_view, train=none, validation=none), compose("+defense=clp")["defense"])
    run(seeing, defender_view, compose("+defense=clp")["defense"])
    expected = seeing.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in blind.state_dict().items())


def test_the_threshold_and_the_pairing_are_options(
    planted: nn.Module, defender_view: DefenderView, compose: Compose
) -> None:
    strict = compose("+defense=clp", "defense.stages.mask.u=100")["defense"]
    assert not any(result.changed for result in config.make(strict).run(planted, defender_view))
    order = compose("+defense=clp", "defense.stages.score.pairing=module_order")["defense"]
    results = list(config.make(order).run(planted, defender_view))
    assert results[0].output.report["layers"] == 16


def test_a_network_without_pairs(defender_view: DefenderView, compose: Compose) -> None:
    bare = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(IncompatibleError, match="clp needs conv-BatchNorm2d pairs in the network, and Sequential has"):
        list(config.make(compose("+defense=clp")["defense"]).run(bare, defender_view))
