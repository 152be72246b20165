from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench import config
from backdoor_bench.attack.badnet import PatchTrigger
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.stage import DefenderView, InvertedTrigger, Mask

Compose = Callable[..., dict[str, Any]]
SHORT = (
    "++preset.lengths.inversion_epochs=2",
    "++preset.lengths.gradprune_rounds=2",
    "++preset.lengths.gradprune_epochs=1",
)


def test_the_published_numbers(compose: Compose) -> None:
    stages = compose("+defense=gradprune", "preset=published", lengths={})["defense"]["stages"]
    assert (stages["trigger"]["epochs"], stages["trigger"]["max_images"]) == (80, None)
    assert (stages["prune"]["alpha"], stages["prune"]["patience"], stages["prune"]["max_rounds"]) == (0.1, 10, None)
    assert stages["finetune"]["epochs"] == 100
    assert stages["finetune"]["optimizer"]["lr"] == 1e-3


def test_the_length_is_the_defenses(compose: Compose) -> None:
    node = compose("+defense=gradprune", "defense.epochs=7", "++preset.lengths.inversion_images=16")["defense"]
    assert node["stages"]["finetune"]["epochs"] == 7
    assert node["stages"]["trigger"]["max_images"] == 16


def test_blind_from_inversion_to_finetuning(network: nn.Module, defender_view: DefenderView, compose: Compose) -> None:
    defense = config.make(compose("+defense=gradprune", *SHORT)["defense"])
    assert defense.assumes == ()
    results = list(defense.run(network, defender_view))
    assert [result.name for result in results] == ["trigger", "prune", "finetune"]
    assert isinstance(results[0].output, InvertedTrigger)
    assert isinstance(results[1].output, Mask)
    parameters = dict(network.named_parameters())
    assert not any(parameters[name][entries].any() for name, entries in results[1].output.pruned.items())


def test_the_oracle_refuses_without_the_trigger(
    network: nn.Module, defender_view: DefenderView, compose: Compose
) -> None:
    defense = config.make(compose("+defense=gradprune_oracle", *SHORT)["defense"])
    assert defense.assumes == ("trigger",)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(IncompatibleError, match="attack=NAME"):
        list(defense.run(network, defender_view))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    results = list(defense.run(network, replace(defender_view, known_trigger=PatchTrigger((32, 32), 3))))
    assert [result.name for result in results] == ["trigger", "prune", "finetune"]


def test_the_blind_defense_never_looks_at_a_trigger(
    make_network: Callable[..., nn.Module], defender_view: DefenderView, compose: Compose
) -> None:
    states = []
    for known in (None, PatchTrigger((32, 32), 3)):
        torch.manual_seed(0)
        network = make_network().eval()
        defense = config.make(compose("+defense=gradprune", *SHORT)["defense"])
        list(defense.run(network, replace(defender_view, known_trigger=known)))
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_ablations(network: nn.Module, defender_view: DefenderView, compose: Compose) -> None:
    node = compose("+defense=gradprune", *SHORT, "stage@defense.stages.prune=skip")["defense"]
    list(config.make(node).run(network, defender_view))
    with pytest.raises(ConfigError, match="needs a InvertedTrigger"):
        config.make(compose("+defense=gradprune", *SHORT, "stage@defense.stages.trigger=skip")["defense"])


def test_a_network_without_convolutions(defender_view: DefenderView, compose: Compose) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    defense = config.make(compose("+defense=gradprune", *SHORT)["defense"])
    with pytest.raises(IncompatibleError, match="gradprune needs Conv2d"):
        list(defense.run(linear, defender_view))
