"""The formulas of the analyses, on examples small enough to check by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import gamma
from torch import Tensor, nn

from backdoor_bench.analysis import activations, bn_shift, margin, tac, triggers, tsne, unlearning
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.stage.output import Scores

# -- triggers --------------------------------------------------------------------------------------------------------


def pair() -> tuple[Tensor, Tensor]:
    """Two grey images of 2x2; in the second one channel of one pixel is 0.4 brighter."""
    clean = torch.full((2, 3, 2, 2), 0.5)
    triggered = clean.clone()
    triggered[1, 0, 1, 1] = 0.9
    return clean, triggered


def test_differences() -> None:
    found = triggers.differences(*pair())
    assert found["linf"].tolist() == pytest.approx([0, 0.4])
    assert found["l2"].tolist() == pytest.approx([0, 0.4])
    assert found["changed"].tolist() == [0, 0.25]
    assert found["psnr"].tolist() == pytest.approx([math.inf, -10 * math.log10(0.16 / 12)])


def test_residual_and_its_factor() -> None:
    clean, triggered = pair()
    assert triggers.residual(clean, triggered, 2)[1, 0].tolist() == [[0.5, 0.5], [0.5, pytest.approx(0.9)]]
    assert triggers.residual(clean, triggered, 10).max() == 1
    assert triggers.enlargement(clean, clean + 0.04) == 20
    assert triggers.enlargement(clean, clean + 1) == 1


# -- BatchNorm -------------------------------------------------------------------------------------------------------


def test_statistics_of_every_batch_norm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    network[1].weight.data = torch.tensor([3.0, 4.0])  # type: ignore[assignment]
    network[1].running_mean.copy_(torch.tensor([1.0, 2.0]))  # type: ignore[union-attr, operator]
    found = bn_shift.statistics(network)
    assert {name: values.tolist() for name, values in found["1"].items()} == {
        "mean": [1, 2], "variance": [1, 1], "gamma": [3, 4], "beta": [0, 0],
    }  # fmt: skip
    with pytest.raises(IncompatibleError, match="has no BatchNorm2d"):
        bn_shift.statistics(nn.Linear(1, 1))


def test_distance_is_the_mean_shift() -> None:
    assert bn_shift.distance(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])) == pytest.approx(2)
    assert bn_shift.distance(torch.tensor([0.0, 0.0, 4.0]), torch.tensor([0.0, 4.0, 0.0])) == 0


def test_bins_hold_what_is_drawn() -> None:
    even, log = bn_shift.bins(np.arange(1000.0)), bn_shift.bins(np.array([-1, 0, 1e-4, 1e2]), logarithmic=True)
    assert len(even) == len(log) == bn_shift.BINS + 1
    assert even[[0, -1]].tolist() == pytest.approx([4.995, 994.005])
    assert log[1] / log[0] == pytest.approx(log[-1] / log[-2])
    assert bn_shift.bins(np.zeros(5))[-1] == 1  # one value still has a width


# -- t-SNE -----------------------------------------------------------------------------------------------------------


def test_neighbours_vote() -> None:
    clean, labels = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]]), torch.tensor([0, 0, 1, 1, 1, 1])
    points, wanted = torch.tensor([[0.0], [9.0]]), torch.tensor([0, 0])
    assert tsne.neighbour_share(clean, labels, points, wanted, 3) == pytest.approx(2 / 6)


def test_of_many_classes_ten_are_named_and_the_target_is_among_them() -> None:
    def found(classes: int, target: int) -> tsne.Tsne:
        labels = [label for label in range(classes) for _ in range(2)]
        points = np.arange(2.0 * (len(labels) + 3)).reshape(-1, 2)
        names = [f"class {label}" for label in range(classes)]
        return tsne.Tsne({"victim": points}, {"victim": {"target": 0.5}}, labels, [0, 1, 2], [target] * 3, names)

    few, many = found(10, 9), found(43, 30)
    assert few.named() == list(range(10))
    assert many.named() == [*range(9), 30]
    texts = [text.get_text() for text in many.draw().axes[0].texts]
    assert texts == [f"class {label}" for label in many.named()]
    assert "10 of the 43 classes" in " ".join(many.notes())
    assert "classes have" not in " ".join(few.notes())


def test_the_embedding_separates_and_repeats() -> None:
    features = torch.cat([torch.randn(15, 4), torch.randn(15, 4) + 30])
    found = tsne.embed(features, seed=1)
    assert np.array_equal(found, tsne.embed(features, seed=1))
    first, second = found[:15], found[15:]
    inner = max(np.ptp(first, axis=0).max(), np.ptp(second, axis=0).max())
    assert np.linalg.norm(first.mean(0) - second.mean(0)) > inner / 2


# -- activations -----------------------------------------------------------------------------------------------------


def test_sensitivity_counts_deviations() -> None:
    clean = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 2.0]])
    triggered = torch.tensor([[4.0, 1.0, 5.0], [6.0, 1.0, 5.0]])
    # Means 1 and 5, both variances 2; a neuron that never changes; one that does not vary but moves.
    assert activations.sensitivity(clean, triggered).tolist() == [pytest.approx(4 / math.sqrt(2)), 0, math.inf]


def test_overlap() -> None:
    values = torch.arange(4.0)
    assert activations.overlap(values, values) == 1
    assert activations.overlap(values, values + 10) == 0
    assert activations.overlap(values, values + 2) == pytest.approx(0.5)


# -- TAC -------------------------------------------------------------------------------------------------------------


def test_tac_is_the_mean_norm_of_the_difference() -> None:
    clean, triggered = torch.zeros(2, 2, 1, 2), torch.zeros(2, 2, 1, 2)
    triggered[0, 1, 0] = torch.tensor([3.0, 4.0])  # norm 5 in the first pair, 0 in the second
    assert tac.trigger_activated_change(clean, triggered).tolist() == [0, 2.5]


def test_coverage() -> None:
    change, scores = torch.tensor([9.0, 8.0, 1.0, 0.0]), torch.tensor([0.9, 0.1, 0.8, 0.2])
    assert tac.coverage(scores, change, 0.5) == 0.5
    assert tac.coverage(-scores, change, 0.5, high=False) == 0.5
    assert tac.coverage(scores, change, 0.5, high=False) == 0.5
    assert tac.coverage(scores, change, 0.25) == 1
    assert tac.coverage(scores, change, 0.25, high=False) == 0
    assert tac.coverage(scores, change, 1.0) == 1


def test_scores_by_neuron_from_norms_or_convolutions() -> None:
    scores = Scores(
        {"bn1": torch.tensor([1.0, 2.0]), "conv2.weight": torch.tensor([3.0]), "elsewhere": torch.tensor([9.0])}
    )
    assert tac.by_neuron(scores, {"bn1": "conv1", "bn2": "conv2"}).tolist() == [1, 2, 3]
    with pytest.raises(IncompatibleError, match="no scores of bn3 or conv3"):
        tac.by_neuron(scores, {"bn3": "conv3"})


# -- unlearning ------------------------------------------------------------------------------------------------------


def test_correlation() -> None:
    one, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    assert unlearning.correlation(one, 2 * one) == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)}
    assert unlearning.correlation(one, other) == {"pearson": pytest.approx(0.5), "spearman": pytest.approx(0.5)}
    assert unlearning.correlation(one, torch.ones(3)) == {"pearson": None, "spearman": None}


# -- margin ----------------------------------------------------------------------------------------------------------


class ChannelMeans(nn.Module):
    """Logits: the means of the three channels. The largest margin is 1: the class's channel white, the rest black."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_margins() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert margin.margins(logits, torch.tensor([1, 2])).tolist() == [2, -2]


def test_the_maximum_margin_of_a_network_where_it_is_known() -> None:
    images = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    classes = torch.tensor([0, 1, 2] * 2)
    found = margin.maximum_margin(ChannelMeans(), images, classes, steps=200, rate=0.1)
    assert found.tolist() == pytest.approx([1.0] * 6)
    assert torch.equal(images, before)
    start = margin.maximum_margin(ChannelMeans(), images, classes, steps=1)
    assert torch.equal(start, margin.margins(images.mean((2, 3)), classes))


def test_p_value() -> None:
    statistics = [1.0, 1.2, 0.9, 1.1, 5.0]
    shape, place, scale = gamma.fit([0.9, 1.0, 1.1, 1.2])
    assert margin.p_value(statistics) == pytest.approx(1 - gamma.cdf(5.0, shape, place, scale) ** 5)
    assert margin.p_value(statistics) < 0.05 < margin.p_value([1.0, 1.2, 0.9, 1.1, 1.15])
    with pytest.raises(ValueError, match="got 2 in all"):
        margin.p_value([1.0, 2.0])
