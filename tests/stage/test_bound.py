from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from backdoor_bench.dataset import Augmentation, ImageSet
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model import anatomy
from backdoor_bench.numerics import Numerics
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.bound import (
    Bound,
    Moments,
    activation_moments,
    find_sites,
    fixed_augmentation,
    initial_bounds,
)


def test_statistics_are_those_of_the_whole_batch(network: nn.Module, image_set: ImageSet, numerics: Numerics) -> None:
    sites = find_sites(network)
    assert len(sites) == 16
    moments = activation_moments(network, image_set, numerics, sites, batch_size=7)
    for site in (sites[0], sites[-1]):
        with torch.no_grad():
            whole = anatomy.capture(network, network.get_submodule(site), image_set.images / 255, "output")
        mean, std = moments[site]
        assert torch.allclose(mean, whole.mean(0), atol=1e-5)
        assert torch.allclose(std, whole.std(0), atol=1e-5)


def test_channels_share_their_bound() -> None:
    moments = Moments("channel")
    maps = torch.randn(6, 2, 3, 3)
    for part in maps.split(4):
        moments.add(part)
    mean, std = moments.result()
    assert mean.shape == std.shape == (2, 1, 1)
    assert torch.allclose(mean.flatten(), maps.transpose(0, 1).flatten(1).mean(1), atol=1e-6)
    assert torch.allclose(std.flatten(), maps.transpose(0, 1).flatten(1).std(1), atol=1e-6)


def test_channels_of_tokens_are_their_features() -> None:
    moments = Moments("channel")
    tokens = torch.randn(6, 5, 3)
    moments.add(tokens)
    assert torch.allclose(moments.result()[1], tokens.flatten(0, 1).std(0)[None], atol=1e-6)


def test_a_large_mean_costs_no_precision() -> None:
    moments = Moments()
    values = 1000 + torch.tensor([[0.0], [1.0], [2.0]])
    for part in values.split(1):
        moments.add(part)
    assert moments.result()[1].item() == pytest.approx(1.0, abs=1e-6)


def test_one_image_has_no_deviation() -> None:
    moments = Moments()
    moments.add(torch.tensor([[3.0]]))
    assert moments.result() == (3.0, 0.0)


def test_initial_bounds_by_hand() -> None:
    assert initial_bounds({"a": (torch.tensor([1.0]), torch.tensor([0.5]))}, z=4)["a"].item() == 3.0


def test_sites(network: nn.Module) -> None:
    every = find_sites(network)
    assert find_sites(network, 2) == every[:2]
    assert find_sites(network, ["backbone.layer1"]) == every[:4]
    assert find_sites(network, ["backbone.layer1.0.relu2", "backbone.pool"]) == [every[1], "backbone.pool"]
    with pytest.raises(ConfigError, match=r"unknown site .backbone\.layer9"):
        find_sites(network, ["backbone.layer9"])
    with pytest.raises(ConfigError, match="sites=17: expected 1 to 16"):
        find_sites(network, 17)


def test_a_module_that_is_called_twice_or_never(image_set: ImageSet, numerics: Numerics) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.idle = nn.ReLU(), nn.ReLU()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.relu(self.relu(images).mean((2, 3)))

    with pytest.raises(IncompatibleError, match="'relu' more than once per forward"):
        activation_moments(Twice(), image_set, numerics, ["relu"])
    with pytest.raises(IncompatibleError, match="'idle' never"):
        activation_moments(Twice(), image_set, numerics, ["idle"])


def test_the_augmentation_is_drawn_once(defender_view: DefenderView) -> None:
    view = replace(defender_view, augmentation=Augmentation(crop_padding=4, flip=True))
    first, second = fixed_augmentation(view), fixed_augmentation(view)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, view.train.images)
    # What is tightened on are the images that the statistics came from.
    statistics, tightened = (fixed_augmentation(view.for_stage(name)) for name in ("bound", "tighten"))
    assert torch.equal(statistics.images, tightened.images)
    assert torch.equal(fixed_augmentation(defender_view).images, defender_view.train.images)


def test_the_stage_leaves_the_network_alone(network: nn.Module, defender_view: DefenderView) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    bounds = Bound(granularity="unit").run(network, defender_view)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert next(iter(bounds.values.values())).shape == (2, 32, 32)
    assert bounds.report["sites"] == 16
    assert next(iter(Bound(granularity="channel").run(network, defender_view).values.values())).shape == (2, 1, 1)


def test_nothing_to_bound(defender_view: DefenderView) -> None:
    with pytest.raises(IncompatibleError, match="no activations to bound"):
        Bound().check(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), defender_view)
    with pytest.raises(ConfigError, match="granularity=map"):
        Bound(granularity="map")  # type: ignore[arg-type]
