from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backdoor_bench.dataset import Augmentation, ImageSet
from backdoor_bench.errors import ConfigError
from backdoor_bench.model import addition
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.bound import Bound
from backdoor_bench.stage.clip import Clip, install
from backdoor_bench.stage.tighten import Tighten, penalty

ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9))


def stage(**options: Any) -> Tighten:
    return Tighten(**{"steps": 3, "batch_size": 40, "optimizer": ADAM, **options})


@pytest.fixture
def view(network: nn.Module, defender_view: DefenderView) -> DefenderView:
    """Validation images that the untrained network gets right, so that its accuracy can fall."""
    with torch.no_grad():
        guessed = network(defender_view.validation.images / 255).argmax(1)
    return replace(defender_view, validation=ImageSet(defender_view.validation.images, guessed))


class Functional(nn.Module):
    """What torchvision's blocks do: one module for two calls, and a function, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, stride=4), nn.Conv2d(4, 4, 1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv1(images))
        x = self.relu(self.conv2(x)) + x
        return self.head(F.relu(x - 0.1, inplace=True).mean((2, 3)))


@pytest.mark.parametrize("first", [True, False])
def test_activations_that_are_no_modules_are_bounded_and_stored(first: bool, defender_view: DefenderView) -> None:
    network = Functional().eval()
    whole = copy.deepcopy(network)
    names = list(network.state_dict())
    bounds = Bound(granularity="channel").run(network, defender_view) if first else None
    after = stage(eps=1.0).run(network, defender_view, bounds)
    assert list(after.values) == [f"activation_calls.{number}" for number in range(3)]
    assert [name for name in network.state_dict() if name in names] == names
    images = torch.rand(3, 3, 32, 32) * 3
    logits = network(images)
    assert not torch.equal(logits, whole(images))  # three times as bright as any image: clipped
    again = Functional().eval()
    addition.restore(again, addition.describe(network))
    again.load_state_dict(network.state_dict())
    assert torch.allclose(again(images), logits, atol=1e-6)


def test_penalty_is_the_mean_per_site_and_counts_no_negative_bound() -> None:
    assert penalty([torch.tensor([1.0, 3.0]), torch.tensor([[5.0], [-7.0]])]).item() == 2.0 + 2.5


def test_only_the_bounds_move(network: nn.Module, view: DefenderView) -> None:
    network.eval()
    bounds = Bound().run(network, view)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    after = stage(eps=1.0).run(network, view, bounds)
    tensors = network.state_dict()
    assert {key for key in tensors if key not in before} == {f"{site}.bound" for site in bounds.values}
    for key, value in before.items():  # weights and BatchNorm statistics
        assert torch.equal(tensors[key], value)
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(buffer.requires_grad for buffer in network.buffers())
    for site, bound in after.values.items():
        assert torch.equal(tensors[f"{site}.bound"], bound)
        assert not torch.equal(bound, bounds.values[site])
    assert after.report["accepted_steps"] == 3
    assert after.report["penalty"] < after.report["penalty_before"]


@pytest.mark.parametrize("batch_size", [40, 16])
def test_one_step_is_that_of_the_whole_batch(network: nn.Module, view: DefenderView, batch_size: int) -> None:
    bounds = Bound(z=0.5).run(network, view)
    twin = install_copy(network, bounds.values)
    trained = [clip.bound.requires_grad_() for clip in twin.modules() if isinstance(clip, Clip)]
    loss = F.cross_entropy(twin(view.train.images / 255), view.train.labels)
    (loss + 0.5 * penalty(trained)).backward()
    plain = partial(torch.optim.SGD, lr=0.1)
    run = stage(steps=1, eps=1.0, alpha=0.5, optimizer=plain, batch_size=batch_size).run(network, view, bounds)
    for bound, moved in zip(trained, run.values.values(), strict=True):
        assert bound.grad is not None
        assert torch.allclose(moved, (bound - 0.1 * bound.grad).clamp(min=0), atol=1e-6)


def install_copy(network: nn.Module, bounds: Mapping[str, torch.Tensor]) -> nn.Module:
    twin = copy.deepcopy(network)
    install(twin, bounds)
    return twin


def test_nothing_accepted_keeps_the_initial_bounds(defender_view: DefenderView) -> None:
    head = nn.Linear(3, 4)
    head.weight.data = torch.tensor([10.0, 0, 0, 0])[:, None].expand(4, 3).clone()
    head.bias.data = torch.tensor([0.0, 1, 0, 0])
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU(), head).eval()  # class 0, at zero class 1
    validation = ImageSet(defender_view.validation.images, torch.zeros_like(defender_view.validation.labels))
    view = replace(defender_view, validation=validation)
    bounds = Bound().run(network, view)
    # Nothing is clipped at first, so the first step follows the penalty alone, and takes all bounds under zero.
    after = stage(steps=1, optimizer=partial(torch.optim.SGD, lr=1e6)).run(network, view, bounds)
    assert after.report["accepted_steps"] == 0
    assert after.report["accuracy"] is None
    assert after.report["tolerated_drop"] == 1 / 8
    assert torch.equal(after.values["2"], bounds.values["2"])
    assert torch.equal(network.get_submodule("2").bound, bounds.values["2"])


def test_alpha_follows_the_validation_accuracy(network: nn.Module, view: DefenderView) -> None:
    assert stage(steps=10, eps=1.0).run(network, view).report["alpha"] == pytest.approx(4e-3)


def test_alpha_by_the_paper(network: nn.Module, view: DefenderView) -> None:
    assert stage(eps=1.0, alpha_rule="paper").run(network, view).report["alpha"] == pytest.approx(8e-3)


def test_without_bounds_it_starts_from_four_deviations(network: nn.Module, view: DefenderView) -> None:
    with_bounds = stage(steps=1, eps=1.0).run(install_copy(network, {}), view, Bound().run(network, view))
    alone = stage(steps=1, eps=1.0).run(network, view)
    for site, bound in with_bounds.values.items():
        assert torch.equal(alone.values[site], bound)


def test_the_purified_network_survives_being_stored(
    network: nn.Module, view: DefenderView, make_network: Callable[..., nn.Module]
) -> None:
    stage(eps=1.0).run(network, replace(view, augmentation=Augmentation(crop_padding=2)))
    again = view.numerics.place(make_network())  # another memory format rounds differently
    addition.restore(again, addition.describe(network))
    again.load_state_dict(network.state_dict())
    tensors = again.state_dict()
    assert all(torch.equal(tensors[name], value) for name, value in network.state_dict().items())
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(again.eval()(images), network(images))


def test_options_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="alpha_rule=best"):
        stage(alpha_rule="best")
    with pytest.raises(ConfigError, match="eps=-1"):
        stage(eps=-1)
