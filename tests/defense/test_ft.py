from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench import config
from backdoor_bench.errors import ConfigError
from backdoor_bench.stage import DefenderView

Compose = Callable[..., dict[str, Any]]


def test_is_one_stage_that_changes_the_network(
    network: nn.Module, defender_view: DefenderView, compose: Compose
) -> None:
    defense = config.make(compose("+defense=ft", "defense.epochs=1")["defense"])
    (result,) = defense.run(network, defender_view)
    assert (result.name, result.output, result.changed) == ("finetune", None, True)
    assert result.network is network
    assert result.seconds > 0


def test_the_published_length_and_rate(compose: Compose) -> None:
    # Of CIFAR-10, whose recipe names no lengths of its own.
    node = compose("dataset=cifar10", "+defense=ft", lengths={})["defense"]
    finetune = node["stages"]["finetune"]
    assert (node["epochs"], finetune["epochs"], finetune["batch_size"]) == (100, 100, 256)
    assert (finetune["optimizer"]["lr"], finetune["scheduler"]["T_max"]) == (0.01, 100)


def test_one_override_sets_the_length_of_the_recovery(compose: Compose) -> None:
    finetune = compose("+defense=ft", "defense.epochs=7")["defense"]["stages"]["finetune"]
    assert (finetune["epochs"], finetune["scheduler"]["T_max"]) == (7, 7)


def test_works_without_validation_images(network: nn.Module, defender_view: DefenderView, compose: Compose) -> None:
    view = replace(defender_view, validation=defender_view.validation[torch.arange(0)])
    node = compose("+defense=ft", "defense.epochs=1", "defense.use_validation=train")["defense"]
    assert [result.changed for result in config.make(node).run(network, view)] == [True]


def test_an_option_it_does_not_have(compose: Compose) -> None:
    with pytest.raises(ConfigError, match="defense 'ft' has no option depth"):
        config.make(compose("+defense=ft", "+defense.depth=3")["defense"])
