from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.errors import ConfigError
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.two_pass import TwoPassFinetune, still_statistics


class Adaptive(TwoPassFinetune):
    """Adaptive SAM on a smoothed loss, in the lines that a method has to write."""

    def displacement(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        scaled = [weight.abs() * gradient for weight, gradient in zip(weights, gradients, strict=True)]
        length = torch.stack(torch._foreach_norm(scaled)).norm() + 1e-12
        return [2 * weight.abs() * part / length for weight, part in zip(weights, scaled, strict=True)]

    def objective(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.network(images), labels, label_smoothing=0.1)


class Line(nn.Module):
    """Logits ``(w * mean, 0)``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.w * images.mean((1, 2, 3)), images.new_zeros(len(images))], 1)


def stage(kind: type[TwoPassFinetune] = Adaptive, **options: Any) -> TwoPassFinetune:
    return kind(**{"epochs": 1, "batch_size": 40, "optimizer": partial(torch.optim.SGD, lr=0.1), **options})


def test_another_displacement_and_another_objective_by_hand(defender_view: DefenderView) -> None:
    means = (defender_view.train.images / 255).mean((1, 2, 3))
    labels = (defender_view.train.labels > 0).long()
    view = copy.copy(defender_view)
    object.__setattr__(view, "train", type(view.train)(view.train.images, labels))

    def gradient(w: float) -> float:
        # d/dw of the mean of -0.95 log p(label) - 0.05 log p(other): (p0 - smoothed share of class 0) * mean
        p0 = torch.sigmoid(w * means)
        wanted = torch.where(labels == 0, 0.95, 0.05)
        return ((p0 - wanted) * means).mean().item()

    # One weight: w^2 g / |w g| is |w| with the gradient's sign, times the radius 2.
    g1 = gradient(0.5)
    moved = 0.5 + 2 * 0.5 * (1 if g1 > 0 else -1)
    network = Line()
    stage(alpha=0.75).run(network, view)
    assert network.w.item() == pytest.approx(0.5 - 0.1 * (0.25 * g1 + 0.75 * gradient(moved)), abs=1e-5)


def test_statistics_follow_the_first_pass_and_the_weights_come_back(
    network: nn.Module, defender_view: DefenderView
) -> None:
    tuned = copy.deepcopy(network)
    stage(optimizer=partial(torch.optim.SGD, lr=0.0)).run(tuned, defender_view)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), tuned.parameters(), strict=True))
    assert tuned.get_submodule("backbone.layer1.0.bn1").num_batches_tracked.item() == 1


def test_still_statistics_uses_the_batch_and_keeps_the_buffers() -> None:
    layer = nn.BatchNorm2d(2).train()
    images = torch.rand(4, 2, 3, 3) + 5
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with still_statistics(layer):
        out = layer(images)
    assert out.mean().abs() < 1e-4
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())
    assert layer.track_running_stats


def test_alpha_is_a_fraction() -> None:
    with pytest.raises(ConfigError, match=r"alpha=7.*\[0, 1\]"):
        stage(alpha=7)
