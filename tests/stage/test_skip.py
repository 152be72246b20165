from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from backdoor_bench import config
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.skip import Skip


def test_does_nothing_whatever_the_options(network: nn.Module, defender_view: DefenderView) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert Skip(epochs=3, optimizer=None).run(network, defender_view) is None  # type: ignore[func-returns-value]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert Skip.gives() is None
    assert Skip.ports() == []


def test_takes_the_place_of_a_stage_and_its_options(compose: Callable[..., dict[str, Any]]) -> None:
    node = compose("stage@defense.stages.finetune=skip", "+defense=ft")["defense"]
    defense = config.make(node)
    assert isinstance(defense.stages["finetune"], Skip)
