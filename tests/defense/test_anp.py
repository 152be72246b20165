from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench import config
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.stage import DefenderView

Compose = Callable[..., dict[str, Any]]
SHORT = ["defense.stages.mask.iterations=2", "defense.stages.mask.batch_size=16"]


def test_masks_a_copy_then_prunes_gammas_alone(
    network: nn.Module, defender_view: DefenderView, compose: Compose
) -> None:
    # Masks that have hardly moved: a threshold that takes a few, whatever the accuracy.
    prune = [f"defense.stages.prune.{option}" for option in ("choose=fixed_count", "count=3")]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    results = []
    for result in config.make(compose("+defense=anp", *SHORT, *prune)["defense"]).run(network, defender_view):
        results.append((result.name, result.changed, result.output.report["channels" if not results else "pruned"]))
    assert results == [("mask", False, 106), ("prune", True, 3)]
    changed = {key: value for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert all(".bn" in key and key.endswith(".weight") for key in changed)
    assert sum(int((value == 0).sum()) for value in changed.values()) == 3


def test_the_two_published_settings(compose: Compose) -> None:
    for stage, rate, batch in (("adversarial_mask", 0.01, 256), ("adversarial_mask_official", 0.2, 128)):
        # Of CIFAR-10, whose recipe names no lengths of its own.
        chosen = compose("dataset=cifar10", f"stage@defense.stages.mask={stage}", "+defense=anp", lengths={})
        mask = chosen["defense"]["stages"]["mask"]
        assert (mask["optimizer"]["lr"], mask["batch_size"], mask["iterations"]) == (rate, batch, 2000)


def test_a_network_without_batch_norm(defender_view: DefenderView, compose: Compose) -> None:
    bare = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    with pytest.raises(IncompatibleError, match="anp needs BatchNorm2d in the network, and Sequential has none"):
        list(config.make(compose("+defense=anp")["defense"]).run(bare, defender_view))


def test_needs_validation_images_only_to_choose_by_them(
    network: nn.Module, defender_view: DefenderView, compose: Compose
) -> None:
    view = replace(defender_view, validation=defender_view.validation[torch.arange(0)])
    node = compose("+defense=anp", *SHORT)["defense"]
    with pytest.raises(ConfigError, match="'prune' of anp decides by validation accuracy"):
        list(config.make(node).run(network, view))
    fixed = compose("+defense=anp", *SHORT, "defense.stages.prune.choose=fixed")["defense"]
    assert len(list(config.make(fixed).run(network, view))) == 2
