from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench import config
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.stage import Bounds, DefenderView
from backdoor_bench.stage.clip import Clip

Compose = Callable[..., dict[str, Any]]
SHORT = ("+defense=unit",)


def clips(network: nn.Module) -> dict[str, Clip]:
    return {name: module for name, module in network.named_modules() if isinstance(module, Clip)}


def test_the_published_numbers(compose: Compose) -> None:
    node = compose("+defense=unit", "preset=published", lengths={})["defense"]
    assert node["stages"]["bound"]["z"] == 4
    tighten = node["stages"]["tighten"]
    assert (tighten["steps"], tighten["eps"], tighten["alpha"]) == (300, 0.02, 1e-3)
    assert (tighten["optimizer"]["lr"], tighten["optimizer"]["betas"]) == (1e-3, [0.5, 0.9])


def test_runs_to_the_end_clips_every_site_and_moves_no_weight(
    network: nn.Module, defender_view: DefenderView, compose: Compose
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    results = list(config.make(compose(*SHORT)["defense"]).run(network, defender_view))
    assert [(result.name, result.changed) for result in results] == [("bound", False), ("tighten", True)]
    assert isinstance(results[-1].output, Bounds)
    assert len(clips(network)) == 16
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_without_tightening_the_statistics_clip(
    network: nn.Module, defender_view: DefenderView, compose: Compose
) -> None:
    node = compose(*SHORT, "stage@defense.stages.tighten=clip")["defense"]
    results = list(config.make(node).run(network, defender_view))
    initial = results[0].output
    assert isinstance(initial, Bounds)
    assert all(torch.equal(clip.bound, initial.values[name]) for name, clip in clips(network).items())


def test_without_the_statistics_stage_it_takes_its_own(
    network: nn.Module, defender_view: DefenderView, compose: Compose
) -> None:
    node = compose(*SHORT, "stage@defense.stages.bound=skip")["defense"]
    list(config.make(node).run(network, defender_view))
    assert len(clips(network)) == 16


def test_refuses_what_it_cannot_do(defender_view: DefenderView, compose: Compose) -> None:
    defense = config.make(compose(*SHORT)["defense"])
    with pytest.raises(IncompatibleError, match="unit needs activations"):
        list(defense.run(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), defender_view))


def test_needs_validation_images(network: nn.Module, defender_view: DefenderView, compose: Compose) -> None:
    empty = dataclasses.replace(defender_view, validation=defender_view.validation[torch.zeros(8, dtype=torch.bool)])
    with pytest.raises(ConfigError, match="use_validation=hold_out"):
        list(config.make(compose(*SHORT)["defense"]).run(network, empty))
