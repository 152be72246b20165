"""Activations of whole networks: published ones, and those that are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import densenet121, mobilenet_v3_small, resnet18, wide_resnet50_2

from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model.activation_calls import separate
from tests.model.functional import Functional


class Again(nn.Module):
    """A block that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Functional(F.relu)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class Iterating(nn.Module):
    """Runs whatever children it has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = F.relu(child(x))
        return x


def test_a_block_that_runs_twice_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="'block' runs 2 times per forward"):
        separate(Again())


def test_a_module_that_runs_its_children_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="Iterating cannot be run on images"):
        separate(Iterating())
    relu = nn.ReLU()
    repeated = nn.Sequential(nn.Sequential(relu), nn.Sequential(relu))
    assert separate(repeated) == ["0.0", "1.0"]
    traced = torch.fx.symbolic_trace(Functional(F.relu))
    with pytest.raises(IncompatibleError, match="its code is generated"):
        separate(traced)


@pytest.mark.parametrize(
    ("make", "count"),
    # Stem and two a block (UNIT's 17); stem and three a bottleneck; two a dense layer, one a transition, stem and last.
    [
        (resnet18, 17),
        (wide_resnet50_2, 49),
        pytest.param(densenet121, 2 * 58 + 3 + 2, marks=pytest.mark.slow),
        pytest.param(mobilenet_v3_small, 33, marks=pytest.mark.slow),
    ],
)
def test_published_networks(make: Callable[..., nn.Module], count: int) -> None:
    with torch.device("meta"):
        network = make()
    names = list(network.state_dict())
    assert len(set(separate(network))) == count
    assert list(network.state_dict()) == names


@pytest.mark.slow
def test_a_network_of_timm() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model("convnext_atto", num_classes=4)
    sites = separate(network)
    assert len(sites) == 12
    assert all(site.endswith("mlp.act") for site in sites)
