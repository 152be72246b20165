from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench.dataset import ImageSet
from backdoor_bench.errors import ConfigError
from backdoor_bench.stage import DefenderView, Scores, threshold_sweep
from backdoor_bench.stage.threshold_sweep import ThresholdSweep, grid, largest_within

BETA = [-0.2, -0.1, 0.0]


@pytest.fixture
def colours(defender_view: DefenderView) -> DefenderView:
    """One red, four green and five blue images to validate on, classes 0, 1 and 2."""
    labels = torch.tensor([0] + [1] * 4 + [2] * 5)
    images = torch.zeros(10, 3, 2, 2, dtype=torch.uint8)
    images[torch.arange(10), labels] = 255
    return replace(defender_view, validation=ImageSet(images, labels))


def colour_network() -> nn.Sequential:
    """A channel per colour, so that a pruned one loses its class; but a pruned blue still wins by its shift."""
    network = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].bias.data.copy_(torch.tensor(BETA))
    return network.eval()


SCORES = Scores({"0": torch.tensor([0.1, 0.5, 0.02])})


def test_the_grid_is_written_in_decimals() -> None:
    assert grid(0.9, 0.05)[:4] == [0, 0.05, 0.1, 0.15]
    assert (len(grid(0.9, 0.05)), grid(0.9, 0.05)[-1], grid(0, 0.05)) == (19, 0.9, [0])


@pytest.mark.parametrize(
    ("accuracies", "position"), [([1, 0.9, 0.5], 1), ([1, 0.5, 0.95, 0.5], 2), ([0.5, 0.5], None), ([1, 1], 1)]
)
def test_the_largest_threshold_that_is_within(accuracies: list[float], position: int | None) -> None:
    assert largest_within(accuracies, 1.0, 0.1) == position


def test_a_tenth_of_the_accuracy_is_within_whatever_the_rounding() -> None:
    assert 0.8 - 0.72 > 0.1 * 0.8  # 0.08000000000000007
    assert largest_within([0.8, 0.72], 0.8, 0.1) == 1
    assert largest_within([0.8, 0.71], 0.8, 0.1) == 0


def test_a_drop_in_points_is_another_than_a_share() -> None:
    assert largest_within([0.5, 0.45, 0.4], 0.5, 0.1) == 1
    assert largest_within([0.5, 0.45, 0.4], 0.5, 0.1, relative=False) == 2


@pytest.mark.parametrize(
    ("max_drop", "threshold", "pruned", "after"),
    [(0.0, 0.05, [False, False, True], 1.0), (0.1, 0.45, [True, False, True], 0.9), (0.6, 0.9, [True] * 3, 0.5)],
)
def test_prunes_what_the_validation_accuracy_allows(
    max_drop: float, threshold: float, pruned: list[bool], after: float, colours: DefenderView
) -> None:
    network = colour_network()
    mask = ThresholdSweep(max_drop=max_drop).run(network, colours, SCORES)
    assert mask.pruned["0.weight"].tolist() == pruned
    assert network[0].weight.tolist() == [0.0 if entry else 1.0 for entry in pruned]
    assert network[0].bias.tolist() == pytest.approx(BETA)
    assert mask.report == {
        "units": 3,
        "threshold": threshold,
        "validation_accuracy_before": 1.0,
        "validation_accuracy": after,
        "validation_images": 10,
        "pruned": sum(pruned),
    }


def test_measures_only_where_the_pruned_set_grew(colours: DefenderView, monkeypatch: pytest.MonkeyPatch) -> None:
    gammas = []

    def accuracy(network: nn.Module, *_: Any) -> float:
        gammas.append(network[0].weight.tolist())
        return 1.0

    monkeypatch.setattr(threshold_sweep, "accuracy", accuracy)
    ThresholdSweep().run(colour_network(), colours, SCORES)
    assert gammas == [[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_prunes_nothing_where_the_first_threshold_is_too_much(colours: DefenderView) -> None:
    network = colour_network()
    mask = ThresholdSweep().run(network, colours, Scores({"0": torch.zeros(3)}))
    assert (mask.report["threshold"], mask.report["pruned"], mask.report["validation_accuracy"]) == (None, 0, 1.0)
    assert network[0].weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "gamma"),
    [
        ({"choose": "fixed"}, [0, 1, 0]),
        ({"choose": "fixed", "threshold": 0.05}, [1, 1, 0]),
        ({"choose": "fixed_count", "count": 1}, [1, 1, 0]),
        ({"choose": "fixed_count", "count": 0}, [1, 1, 1]),
    ],
)
def test_rules_that_need_no_validation(options: dict[str, Any], gamma: list[float], colours: DefenderView) -> None:
    network, stage = colour_network(), ThresholdSweep(**options)
    assert not stage.uses_validation
    stage.run(network, replace(colours, validation=colours.validation[torch.arange(0)]), SCORES)
    assert network[0].weight.tolist() == gamma


def test_of_equal_scores_the_first_are_counted(colours: DefenderView) -> None:
    network = colour_network()
    ThresholdSweep(choose="fixed_count", count=2).run(network, colours, Scores({"0": torch.ones(3)}))
    assert network[0].weight.tolist() == [0, 0, 1]


def test_validation_is_used_by_default() -> None:
    assert ThresholdSweep().uses_validation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choose": "oracle"}, "choose=oracle"),
        ({"max_drop": 10}, "max_drop=10"),
        ({"step": 0}, "step=0"),
        ({"choose": "fixed_count"}, "count=None"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ThresholdSweep(**options)


def test_more_than_there_are(colours: DefenderView) -> None:
    with pytest.raises(ConfigError, match="count=4: the network has 3 units"):
        ThresholdSweep(choose="fixed_count", count=4).run(colour_network(), colours, SCORES)
