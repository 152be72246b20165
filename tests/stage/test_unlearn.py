from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backdoor_bench.dataset import ImageSet
from backdoor_bench.errors import ConfigError
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.finetune import Finetune
from backdoor_bench.stage.unlearn import Unlearn


def stage(**options: Any) -> Unlearn:
    return Unlearn(**{"epochs": 3, "batch_size": 40, "optimizer": partial(torch.optim.SGD, lr=0.05), **options})


def loss_of(network: nn.Module, view: DefenderView) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(network.train()(view.train.images.float() / 255), view.train.labels))


def test_ascends_on_a_copy_and_leaves_the_network_alone(network: nn.Module, defender_view: DefenderView) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    reference = stage(stop_accuracy=0.0).run(network, defender_view)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not reference.network.training
    assert loss_of(reference.network, defender_view) > loss_of(network, defender_view)


def test_one_step_is_plus_the_gradient(network: nn.Module, defender_view: DefenderView) -> None:
    moved = stage(epochs=1).run(network, defender_view).network
    # The stage's own order: float32 sums in another one, and a rectifier near zero may open.
    data = defender_view.train[torch.randperm(40, generator=defender_view.generator("order"))]
    F.cross_entropy(network.train()(defender_view.numerics.images(data.images)), data.labels).backward()
    for before, after in zip(network.parameters(), moved.parameters(), strict=True):
        assert torch.allclose(after, before + 0.05 * before.grad, atol=1e-6)


def test_stops_after_the_first_epoch_that_has_forgotten(defender_view: DefenderView) -> None:
    # Class c has eight white rows of its own, and one weight per pixel tells them apart.
    images = torch.zeros(12, 3, 4, 8, 32, dtype=torch.uint8)
    labels = torch.arange(12) % 4
    images[torch.arange(12), :, labels] = 255
    view = replace(defender_view, train=ImageSet(images.view(12, 3, 32, 32), labels))
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    learn = partial(torch.optim.SGD, lr=0.001)
    Finetune(epochs=5, batch_size=12, optimizer=learn).run(network, view)
    report = stage(epochs=99, optimizer=learn).run(network, view).report
    assert report["forgotten"]
    assert report["accuracy"] <= 0.1
    assert 1 < report["epochs"] < 99
    one_less = stage(epochs=report["epochs"] - 1, optimizer=learn).run(network, view).report
    assert not one_less["forgotten"]
    assert one_less["accuracy"] > 0.1


def test_says_when_it_has_not_forgotten(network: nn.Module, defender_view: DefenderView) -> None:
    slow = partial(torch.optim.SGD, lr=1e-9)
    report = stage(epochs=2, stop_accuracy=0.0, optimizer=slow).run(network, defender_view).report
    assert report == {"epochs": 2, "accuracy": pytest.approx(report["accuracy"]), "forgotten": False}


def test_a_threshold_that_is_no_fraction() -> None:
    with pytest.raises(ConfigError, match="stop_accuracy=10"):
        stage(stop_accuracy=10)
