from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.attack.base import Trigger
from backdoor_bench.dataset import Augmentation
from backdoor_bench.model import anatomy
from backdoor_bench.stage import DefenderView, InvertedTrigger, Mask
from backdoor_bench.stage.trigger_finetune import KeepBest, TriggerFinetune


class Invert(Trigger):
    def paint(self, images: Tensor) -> Tensor:
        return 1 - images


TRIGGER = InvertedTrigger(Invert(), 0)


def stage(**options: Any) -> TriggerFinetune:
    return TriggerFinetune(**{"epochs": 1, "batch_size": 40, "optimizer": partial(torch.optim.SGD, lr=0.05), **options})


def test_one_step_is_the_sum_of_two_gradients(network: nn.Module, defender_view: DefenderView) -> None:
    # Smooth activations: with ReLU the stage's memory format rounds a few signs the other way, 1 % of the gradient.
    for name in anatomy.activations(network):
        network.set_submodule(name, nn.Softplus())
    view = replace(defender_view, augmentation=Augmentation(crop_padding=4))  # not used
    twin = copy.deepcopy(network).train()
    images, labels = view.train.images / 255, view.train.labels
    F.cross_entropy(twin(images), labels).backward()
    F.cross_entropy(twin(1 - images), labels).backward()
    stage().run(network, view, TRIGGER)
    for before, after in zip(twin.parameters(), network.parameters(), strict=True):
        assert before.grad is not None
        assert torch.allclose(after, before - 0.05 * before.grad, atol=1e-5)
    # BatchNorm learned from the clean batch and from the triggered one.
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        norm, expected = (getattr(n.get_submodule("backbone.layer1.0.bn1"), name) for n in (network, twin))
        assert torch.allclose(norm, expected, atol=1e-6), name
    assert not network.training


def test_pruned_entries_stay(network: nn.Module, defender_view: DefenderView) -> None:
    name = "backbone.layer1.0.conv1.weight"
    entries = torch.zeros_like(network.get_parameter(name), dtype=torch.bool)
    entries[1, 0] = True  # half a filter: a silent channel would get no gradient in any case
    with torch.no_grad():
        network.get_parameter(name)[entries] = 0
    twin = copy.deepcopy(network)
    stage().run(network, defender_view, TRIGGER, Mask({name: entries}))
    assert not network.get_parameter(name)[entries].any()
    stage(masked=False).run(twin, defender_view, TRIGGER, Mask({name: entries}))
    assert twin.get_parameter(name)[entries].any()


def test_the_best_epoch_is_returned_and_patience_ends_the_fit(
    network: nn.Module, defender_view: DefenderView, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[KeepBest] = []
    losses: list[float] = []
    after = KeepBest.on_train_epoch_end

    def record(self: KeepBest, *arguments: Any) -> None:
        after(self, *arguments)
        made.append(self)
        self.network.eval()
        with torch.no_grad():
            logits = self.network(self.view.validation.images / 255)
        losses.append(F.cross_entropy(logits, self.view.validation.labels).item())
        self.network.train()

    monkeypatch.setattr(KeepBest, "on_train_epoch_end", record)
    stage(epochs=40, patience=3, optimizer=partial(torch.optim.SGD, lr=0.3)).run(network, defender_view, TRIGGER)
    assert len(losses) < 40
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3
    with torch.no_grad():
        logits = network(defender_view.validation.images / 255)
    assert F.cross_entropy(logits, defender_view.validation.labels).item() == pytest.approx(min(losses), abs=1e-4)
    assert made[0].best_epoch == best + 1


def test_where_no_epoch_is_better_the_network_is_left_as_it_came(
    network: nn.Module, defender_view: DefenderView
) -> None:
    before = copy.deepcopy(network.state_dict())
    ascent = partial(torch.optim.SGD, lr=0.1, maximize=True)
    stage(epochs=3, optimizer=ascent).run(network, defender_view, TRIGGER)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
