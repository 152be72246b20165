from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench.model import anatomy
from backdoor_bench.stage import DefenderView, Mask
from backdoor_bench.stage.finetune import Finetune
from backdoor_bench.stage.validation import accuracy


def stage(**options: Any) -> Finetune:
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1)
    return Finetune(**{"epochs": 2, "batch_size": 16, "optimizer": optimizer, **options})


def every_second(parameter: nn.Parameter) -> torch.Tensor:
    """(same shape) bool: True, False, True, ..."""
    return (torch.arange(parameter.numel()) % 2 == 0).view(parameter.shape)


@pytest.fixture
def pruned(network: nn.Module) -> tuple[nn.Module, Mask]:
    """A network with every second entry of a BatchNorm, of a convolution and of the head at 0, and what they are."""
    names = ["backbone.layer1.0.bn2.weight", "backbone.layer2.0.conv1.weight", "backbone.linear.weight"]
    mask = Mask({name: every_second(network.get_parameter(name)) for name in names})
    with torch.no_grad():
        for name, entries in mask.pruned.items():
            network.get_parameter(name)[entries] = 0
    return network, mask


def test_moves_every_parameter_and_every_statistic(network: nn.Module, defender_view: DefenderView) -> None:
    before = copy.deepcopy(network.state_dict())
    assert stage().run(network, defender_view) is None  # type: ignore[func-returns-value]
    assert not [key for key, value in network.state_dict().items() if torch.equal(value, before[key])]
    assert not network.training


def test_learns_the_clean_images(defender_view: DefenderView) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    learn = partial(torch.optim.SGD, lr=0.01)
    stage(epochs=60, batch_size=40, optimizer=learn).run(network, defender_view)
    assert accuracy(network, defender_view.train, defender_view.numerics) > 0.8


def test_masked_entries_stay_and_their_neighbours_move(
    pruned: tuple[nn.Module, Mask], defender_view: DefenderView
) -> None:
    network, mask = pruned
    before = copy.deepcopy(network.state_dict())
    stage().run(network, defender_view, mask)
    for name, entries in mask.pruned.items():
        assert not network.get_parameter(name)[entries].any()
        assert (network.get_parameter(name) != before[name])[~entries].any()


def test_without_obeying_the_mask_pruned_entries_come_back(
    pruned: tuple[nn.Module, Mask], defender_view: DefenderView
) -> None:
    network, mask = pruned
    stage(masked=False).run(network, defender_view, mask)
    assert any(network.get_parameter(name)[entries].any() for name, entries in mask.pruned.items())


def test_masked_entries_do_not_weigh_on_the_rest(network: nn.Module, defender_view: DefenderView) -> None:
    """An optimiser that looks at all gradients at once must not see those of frozen entries."""
    norms = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            with torch.enable_grad():
                closure()
            head = next(group["params"][-2] for group in self.param_groups)
            norms.append(head.grad[mask.pruned["backbone.linear.weight"]].abs().sum().item())

    mask = Mask({"backbone.linear.weight": every_second(network.get_parameter("backbone.linear.weight"))})
    stage(epochs=1, optimizer=partial(Watched, lr=0.1)).run(network, defender_view, mask)
    assert norms
    assert not any(norms)


def test_no_epochs_change_nothing(network: nn.Module, defender_view: DefenderView) -> None:
    before = copy.deepcopy(network.state_dict())
    stage(epochs=0).run(network, defender_view)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_dropout_is_active(defender_view: DefenderView) -> None:
    seen = []

    class Note(nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self.training)
            return super().forward(x)

    network = nn.Sequential(nn.Flatten(), Note(), nn.Linear(3 * 32 * 32, 4)).eval()
    stage(epochs=1, batch_size=40).run(network, defender_view)
    assert seen == [True]
    assert not any(module.training for module in network.modules())


def test_statistics_move_towards_those_of_the_images(network: nn.Module, defender_view: DefenderView) -> None:
    """One step at rate 0 in train mode: running mean = 0.9 * before + 0.1 * batch mean."""
    layer = anatomy.batch_norms(network)["backbone.layer1.0.bn1"]
    inputs = anatomy.capture(network, layer, defender_view.numerics.images(defender_view.train.images))
    expected = 0.9 * layer.running_mean + 0.1 * inputs.mean((0, 2, 3))
    stage(epochs=1, batch_size=40, optimizer=partial(torch.optim.SGD, lr=0.0)).run(network, defender_view)
    assert torch.allclose(layer.running_mean, expected, atol=1e-6)
