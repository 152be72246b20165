from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench.model import anatomy
from backdoor_bench.stage import DefenderView, Mask
from backdoor_bench.stage.masked_finetune import MaskedFinetune, batch_size_of


def stage(**options: Any) -> MaskedFinetune:
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    return MaskedFinetune(**{"epochs": 2, "batch_size": 16, "optimizer": optimizer, **options})


@pytest.mark.parametrize(
    ("ratio", "size"),
    [(0.01, 32), (0.02, 32), (0.05, 64), (72 / 1437, 64), (0.1, 128), (0.2, 128), (0.003, 128), (None, 128)],
)
def test_batch_size_follows_the_clean_ratio(ratio: float | None, size: int) -> None:
    assert batch_size_of(ratio) == size


def test_the_ratio_decides_only_where_no_batch_size_is_given(network: nn.Module, defender_view: DefenderView) -> None:
    view = replace(defender_view, clean_ratio=0.01)
    for wanted, used in ((None, 32), (7, 7)):
        finetune = stage(epochs=0, batch_size=wanted)
        finetune.run(network, view)
        assert finetune.batch_size == used


def test_pruned_entries_keep_their_value_to_the_bit_through_decay_and_momentum(
    network: nn.Module, defender_view: DefenderView
) -> None:
    name, layer = next(iter(anatomy.batch_norms(network).items()))
    entries = torch.tensor([True, False])
    with torch.no_grad():
        layer.weight[0], layer.bias[0] = 0.0123, 0.0
    before = {key: value.clone() for key, value in network.state_dict().items()}
    stage().run(network, defender_view, Mask({f"{name}.weight": entries, f"{name}.bias": entries}))
    assert layer.weight[0] == before[f"{name}.weight"][0]
    assert layer.bias[0] == 0
    assert layer.weight[1] != before[f"{name}.weight"][1]
    assert not torch.equal(layer.running_mean, before[f"{name}.running_mean"])
    assert not network.training
