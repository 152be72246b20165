from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.stage import DefenderView, Mask
from backdoor_bench.stage.prune import Prune, units_mask

PRUNED = torch.tensor([[True, False, False], [False, True, True]])


def linear() -> nn.Linear:
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.copy_(torch.arange(1.0, 7.0).view(2, 3))
    return network


def test_pruned_entries_become_the_value_and_no_other(defender_view: DefenderView) -> None:
    network = linear()
    bias = network.bias.clone()
    Prune().run(network, defender_view, Mask({"weight": PRUNED}))
    assert network.weight.tolist() == [[0, 2, 3], [4, 0, 0]]
    Prune(value=0.5).run(network, defender_view, Mask({"weight": PRUNED}))
    assert network.weight.tolist() == [[0.5, 2, 3], [4, 0.5, 0.5]]
    assert torch.equal(network.bias, bias)


def test_noise_is_drawn_around_the_value_once_per_repetition(defender_view: DefenderView) -> None:
    first, second = nn.Linear(100, 50), nn.Linear(100, 50)
    pruned = torch.rand(50, 100, generator=torch.Generator().manual_seed(0)) < 0.8
    kept = first.weight[~pruned].clone()
    for network in (first, second):
        Prune(value=1.0, noise=0.01).run(network, defender_view, Mask({"weight": pruned}))
    assert torch.equal(first.weight[pruned], second.weight[pruned])
    assert torch.equal(first.weight[~pruned], kept)
    assert first.weight[pruned].mean().item() == pytest.approx(1, abs=1e-3)
    assert first.weight[pruned].std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"classifier.weight": PRUNED}, r"'classifier.weight' of \(2, 3\), and Linear has no such parameter"),
        ({"weight": PRUNED.T}, r"'weight' of \(3, 2\), and Linear has one of \(2, 3\)"),
    ],
)
def test_a_mask_of_another_network(defender_view: DefenderView, mask: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        Prune().run(linear(), defender_view, Mask(mask))


def test_negative_noise() -> None:
    with pytest.raises(ConfigError, match=r"noise=-0\.1"):
        Prune(noise=-0.1)


def test_a_unit_is_the_first_index_of_its_modules_parameters() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(3, 2, bias=False))
    unit = torch.tensor([False, True])
    mask = units_mask(network, {"0": unit, "1": unit})
    assert {
        name: entries.flatten(1).tolist() if entries.ndim > 1 else entries.tolist() for name, entries in mask.items()
    } == {
        "0.weight": [[False], [True]],
        "0.bias": [False, True],
        "1.weight": [[False] * 3, [True] * 3],
    }
    assert list(units_mask(network, {"0": unit}, ["bias"])) == ["0.bias"]


@pytest.mark.parametrize(("name", "units", "parts"), [("5", 2, ["weight"]), ("0", 3, ["weight"]), ("1", 2, ["bias"])])
def test_scores_of_another_network(name: str, units: int, parts: list[str]) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(3, 2, bias=False))
    with pytest.raises(IncompatibleError, match=f"{units} units of '{name}' have scores, and Sequential has no"):
        units_mask(network, {name: torch.ones(units, dtype=torch.bool)}, parts)
