from __future__ import annotations

import torch
from torch import nn

from backdoor_bench.model import anatomy
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.bn_reset import BNReset


def test_resets_the_affine_parameters_of_a_copy_only(network: nn.Module, defender_view: DefenderView) -> None:
    with torch.no_grad():
        for layer in anatomy.batch_norms(network).values():
            layer.weight.uniform_(0.5, 2.0)
            layer.bias.uniform_(-1.0, 1.0)
            layer.running_mean.uniform_(-1.0, 1.0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    twin = BNReset(gamma=1.5, beta=0.25).run(network, defender_view).network

    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    affine = {f"{name}.{part}" for name in anatomy.batch_norms(network) for part in ("weight", "bias")}
    for key, value in twin.state_dict().items():
        if key in affine:
            assert (value == (1.5 if key.endswith("weight") else 0.25)).all()
        else:
            assert torch.equal(value, before[key])


def test_the_published_reset_is_one_and_zero(network: nn.Module, defender_view: DefenderView) -> None:
    layer = anatomy.batch_norms(BNReset().run(network, defender_view).network).popitem()[1]
    assert (layer.weight == 1).all()
    assert (layer.bias == 0).all()
