from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model.preact_resnet18 import PreActResNet18
from backdoor_bench.stage import DefenderView, Reference
from backdoor_bench.stage.reinitialise import Reinitialise, neuron_weight_change, weights_to_zero

CHANGES = {
    "a": torch.tensor([[5.0, -4.0, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0]]),  # NWC 9.5, 4
    "b": torch.tensor([[3.0, 3.5], [-0.1, 0.0]]),  # NWC 6.5, 0.1
}


def zeroed(variant: str) -> dict[str, list[list[int]]]:
    found = weights_to_zero(CHANGES, neuron_ratio=0.5, weight_ratio=0.5, variant=variant)
    return {name: entries.int().tolist() for name, entries in found.items()}


def test_neuron_weight_change_by_hand() -> None:
    assert neuron_weight_change(torch.tensor([[[[1.0, -2.0]]], [[[0.0, 0.5]]]])).tolist() == [3.0, 0.5]


def test_the_three_variants_by_hand() -> None:
    # Two of four neurons: a0 and b0. V3 pools 5, 4, 0.5, 0, 3, 3.5 and takes three.
    assert zeroed("V3") == {"a": [[1, 1, 0, 0], [0, 0, 0, 0]], "b": [[0, 1], [0, 0]]}
    assert zeroed("V2") == {"a": [[1, 1, 0, 0], [0, 0, 0, 0]], "b": [[0, 1], [0, 0]]}
    assert zeroed("V1") == {"a": [[1, 1, 1, 1], [0, 0, 0, 0]], "b": [[1, 1], [0, 0]]}


def test_v3_pools_where_v2_keeps_to_each_neuron() -> None:
    changes = {"a": torch.tensor([[9.0, 8.0], [1.0, 2.0]])}
    assert weights_to_zero(changes, 1.0, 0.5, "V3")["a"].tolist() == [[True, True], [False, False]]
    assert weights_to_zero(changes, 1.0, 0.5, "V2")["a"].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("variant", ["V1", "V2", "V3"])
def test_ties_do_not_add_weights(variant: str) -> None:
    changes = {"a": torch.ones(4, 5, 1, 1), "b": torch.ones(4, 5)}
    found = weights_to_zero(changes, 0.25, 0.6, variant)
    assert sum(int(entries.sum()) for entries in found.values()) == {"V1": 10, "V2": 6, "V3": 6}[variant]
    assert found["a"].shape == (4, 5, 1, 1)


def test_zeroes_the_network_not_the_reference_and_counts(network: nn.Module, defender_view: DefenderView) -> None:
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    unlearned = {key: value.clone() for key, value in twin.state_dict().items()}
    stage = Reinitialise()
    weights = stage.ranked(network)
    scores = stage.run(network, defender_view, Reference(twin))

    assert all(torch.equal(unlearned[key], value) for key, value in twin.state_dict().items())
    assert len(weights) == 17
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, torch.where(weight == 0, 0, before[name]))
        assert torch.allclose(scores.values[name], (unlearned[name] - before[name]).abs().sum((1, 2, 3)))
    assert sum(int((weight == 0).sum()) for weight in weights.values()) == scores.report["zeroed"]
    assert scores.report["selected"] == int(0.15 * scores.report["neurons"])
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_published_network_has_3904_neurons_without_shortcuts_and_4800_with() -> None:
    with torch.device("meta"):
        network = PreActResNet18(num_classes=10)
    assert sum(len(weight) for weight in Reinitialise().ranked(network).values()) == 3904
    assert sum(len(weight) for weight in Reinitialise(exclude=[]).ranked(network).values()) == 4800


def test_a_network_with_one_convolution_is_refused_unless_linear(defender_view: DefenderView) -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    network = nn.Sequential(nn.Conv2d(3, 8, 32, 32), nn.Flatten(), encoder, nn.Linear(8, 4))
    with pytest.raises(IncompatibleError, match=r"two conv layers or more, and Sequential has 1 \(0\.weight\)"):
        Reinitialise().check(network, defender_view)
    extension = Reinitialise(layer_type="linear")
    extension.check(network, defender_view)
    assert list(extension.ranked(network)) == [
        "2.self_attn.in_proj_weight",
        "2.self_attn.out_proj.weight",
        "2.linear1.weight",
        "2.linear2.weight",
    ]


def test_what_is_no_fraction_is_refused() -> None:
    with pytest.raises(ConfigError, match="neuron_ratio=15"):
        Reinitialise(neuron_ratio=15)
