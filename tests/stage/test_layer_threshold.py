from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoor_bench.errors import ConfigError
from backdoor_bench.stage import DefenderView, Scores
from backdoor_bench.stage.layer_threshold import LayerThreshold, outstanding


def test_above_mean_plus_u_deviations() -> None:
    # Mean 2, unbiased deviation sqrt((3 * 1 + 9) / 3) = 2: the last lies 1.5 deviations above.
    scores = torch.tensor([1.0, 1.0, 1.0, 5.0])
    assert outstanding(scores, 1.49).tolist() == [False, False, False, True]
    assert not outstanding(scores, 1.5).any()


def test_ten_channels_are_too_few_for_three_deviations() -> None:
    for count, found in ((10, 0), (11, 1)):
        assert outstanding(torch.tensor([*[0.0] * (count - 1), 1.0]), 3).sum() == found


def test_a_layer_of_one_or_of_equals_keeps_all() -> None:
    assert not outstanding(torch.ones(1), -1).any()
    assert not outstanding(torch.ones(5), 0).any()


def test_masks_whole_channels_layer_by_layer(defender_view: DefenderView) -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(4))
    # The second layer's outlier is small beside all of the first: a common threshold would miss it.
    scores = Scores({"0": torch.tensor([100.0, 100.0]), "1": torch.tensor([1.0, 1.0, 5.0, 1.0])})
    mask = LayerThreshold(u=1).run(network, defender_view, scores)
    assert {name: entries.flatten().tolist() for name, entries in mask.pruned.items()} == {
        "0.weight": [False] * 6,
        "1.weight": [False, False, True, False],
        "1.bias": [False, False, True, False],
    }
    assert mask.report == {"units": 6, "pruned": 1, "pruned.1": 1}


def test_no_parts() -> None:
    with pytest.raises(ConfigError, match="parts="):
        LayerThreshold(parts=[])
