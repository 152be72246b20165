from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdoor_bench.dataset import ImageSet
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model import anatomy
from backdoor_bench.numerics import Numerics
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.activation_prune import (
    ActivationPrune,
    correct_after_pruning,
    last_within,
    module_behind,
    positions_per_channel,
)
from backdoor_bench.stage.validation import accuracy


def flattening() -> nn.Sequential:
    """A head over a flattened 2x2 map of five channels, with something behind it; as VGG is built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = [nn.Conv2d(3, 5, 3, stride=4), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        network = nn.Sequential(*features, nn.Linear(20, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 4))
        network.train()(torch.rand(64, 3, 32, 32))
    return network.eval()


def learned(network: nn.Module, view: DefenderView) -> DefenderView:
    """The view with the network's own answers as labels; its last bias is set so that the answers are of all kinds."""
    data = view.train
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.bias -= network(view.numerics.images(data.images)).mean(0)
        answers = network(view.numerics.images(data.images)).argmax(1)
    return replace(view, validation=ImageSet(data.images, answers))


def test_pruning_column_by_column_by_hand() -> None:
    head = nn.Linear(3, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 1.0]]))
        head.bias.copy_(torch.tensor([0.5, 0.0]))
    features = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    # All: (.5, 2) (2.5, 1) (.5, 1). Without column 0: (.5, 1) (2.5, 0) (.5, 0). Without 0 and 1: (.5, 1) (.5, 0) twice.
    groups = [torch.tensor([0]), torch.tensor([1]), torch.tensor([2])]
    assert correct_after_pruning(features, torch.tensor([1, 0, 1]), head, groups).tolist() == [3, 2, 2]


@pytest.mark.parametrize(
    ("correct", "position"),
    [
        ([10, 10, 9, 10], 1),  # a tenth is a drop of a tenth, and what comes back later does not count
        ([100, 91, 91, 89], 2),  # the last that held, not the first that failed
        ([10, 12, 12], 2),  # a rise is no drop
        ([20, 10], 0),
        ([70, 70, 63], 1),  # 0.1 * 70 is 7.000000000000001
        ([0, 0, 0], 0),
    ],
)
def test_the_last_step_before_the_drop(correct: list[int], position: int) -> None:
    assert last_within(correct, 0.1) == position


def brute_force(network: nn.Module, head: nn.Linear, groups: list[Tensor], view: DefenderView) -> list[int]:
    original, counts = head.weight.detach().clone(), []
    for pruned in range(len(groups)):
        with torch.no_grad():
            head.weight.copy_(original)
            for group in groups[:pruned]:
                head.weight[:, group] = 0
        counts.append(round(accuracy(network, view.validation, view.numerics) * len(view.validation)))
    with torch.no_grad():
        head.weight.copy_(original)
    return counts


@pytest.mark.parametrize("kind", ["pooled", "flattened"])
def test_the_sweep_is_what_pruning_and_measuring_gives(
    kind: str, network: nn.Module, defender_view: DefenderView
) -> None:
    network = network if kind == "pooled" else flattening()
    view = learned(network, defender_view)
    name, head = anatomy.head(network)
    width = positions_per_channel(network, head, torch.rand(1, 3, 32, 32))
    assert width == (1 if kind == "pooled" else 4)
    stage = ActivationPrune(max_drop=1.0, step=1)
    groups = stage.groups(network, head, view, width)
    expected = brute_force(network, head, groups, view)
    assert expected[0] == len(view.validation)
    assert len(set(expected)) > 1
    features = anatomy.capture(network, head, view.numerics.images(view.validation.images)).detach()
    behind = None if kind == "pooled" else module_behind(network, name)
    assert correct_after_pruning(features, view.validation.labels, head, groups, behind).tolist() == expected


@pytest.mark.parametrize("max_drop", [0.05, 0.3])
def test_writes_the_columns_it_masks_and_keeps_the_accuracy(max_drop: float, defender_view: DefenderView) -> None:
    network = flattening()
    view = learned(network, defender_view)
    _, head = anatomy.head(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mask = ActivationPrune(max_drop=max_drop, step=1).run(network, view)
    entries = mask.pruned["5.weight"]
    # Whole channels: four neighbouring columns, in all rows.
    assert torch.equal(entries, entries[0].expand_as(entries))
    channels = entries[0].view(5, 4)
    assert torch.equal(channels.all(1), channels.any(1))
    assert mask.report["pruned"] == channels.all(1).sum()
    assert mask.report["features"] == 5
    assert torch.equal(head.weight, before["5.weight"].masked_fill(entries, 0))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items() if name != "5.weight")
    measured = accuracy(network, view.validation, view.numerics)
    assert mask.report["validation_accuracy"] == measured
    assert mask.report["validation_accuracy_before"] == 1
    assert mask.report["validation_images"] == len(view.validation)
    assert measured > 1 - max_drop


def fixed_features(values: Tensor) -> nn.Sequential:
    """A network whose features are ``values``, whatever the image."""
    network = nn.Sequential(nn.Conv2d(3, len(values), 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.copy_(values)
    return network


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"step": 1}, [[3], [2], [0], [1]]),
        ({"step": 1, "rank_by": "abs"}, [[2], [0], [1], [3]]),
        ({"step": 0.3}, [[3, 2], [0, 1]]),  # two of four, rounded up
        ({"step": 3}, [[3, 2, 0], [1]]),
    ],
)
def test_the_order_of_pruning(options: dict[str, Any], order: list[list[int]], defender_view: DefenderView) -> None:
    network = fixed_features(torch.tensor([1.0, 2.0, 0.0, -3.0]))
    groups = ActivationPrune(**options).groups(network, network[3], defender_view, 1)
    assert [group.tolist() for group in groups] == order


def test_one_per_cent_is_rounded_up(make_network: Callable[..., nn.Module], defender_view: DefenderView) -> None:
    network = make_network(width=16).eval()
    groups = ActivationPrune().groups(network, anatomy.head(network)[1], defender_view, 1)
    assert [len(group) for group in groups] == [2] * 64


def test_positions_can_be_pruned_alone(defender_view: DefenderView) -> None:
    network = flattening()
    mask = ActivationPrune(step=1, unit="position").run(network, learned(network, defender_view))
    assert mask.report["features"] == 20


def test_a_path_around_the_head(numerics: Numerics) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            pooled = self.conv(x).mean((2, 3))
            return self.linear(pooled) + pooled

    with pytest.raises(IncompatibleError, match="around the head 'linear'"):
        module_behind(Around(), "linear")


def test_a_head_that_is_not_called(defender_view: DefenderView) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3)) @ self.linear.weight

    with pytest.raises(IncompatibleError, match="Unused has no Linear layer behind"):
        ActivationPrune().run(Unused(), defender_view)


def test_a_head_without_a_bias(defender_view: DefenderView) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4, bias=False))
    assert ActivationPrune().run(network, defender_view).report["features"] == 4


def test_a_network_without_a_head(defender_view: DefenderView) -> None:
    with pytest.raises(IncompatibleError, match="no Linear layer behind its last feature map"):
        ActivationPrune().check(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), defender_view)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 0}, "max_drop=0"),
        ({"step": 1.5}, r"step=1\.5"),
        ({"step": 0}, "step=0"),
        ({"rank_by": "max"}, "rank_by=max"),
        ({"unit": "row"}, "unit=row"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ActivationPrune(**options)
