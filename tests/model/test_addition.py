"""A network with additions survives being described, stored and built again."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdoor_bench.errors import UntrustedError
from backdoor_bench.model import addition, anatomy
from backdoor_bench.model.addition import Addition

HERE = [__name__]


class Cap(Addition):
    """An upper bound that was learned, times a setting."""

    def __init__(self, inner: nn.Module, factor: float = 1.0) -> None:
        super().__init__(inner)
        self.factor = factor
        self.register_buffer("bound", torch.tensor(torch.inf))

    def settings(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).clamp(max=self.factor * self.bound)


class Shift(Addition):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.by = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.by


SITE = "backbone.layer2.1.relu2"


@pytest.fixture
def purified(network: nn.Module) -> nn.Module:
    """A Cap behind every activation, and a Shift around the Cap at one site and around the inner ReLU at another."""
    for number, (site, module) in enumerate(anatomy.activations(network).items()):
        cap = Cap(module, factor=0.5)
        cap.bound.fill_(0.1 * number)
        addition.attach(network, site, cap)
    outer = Shift(network.get_submodule(SITE))
    addition.attach(network, SITE, outer)
    inside = "backbone.layer3.0.relu1.inner"
    inner = Shift(network.get_submodule(inside))
    addition.attach(network, inside, inner)
    outer.by.data.fill_(0.3)
    inner.by.data.fill_(-0.2)
    return network


def test_a_round_trip(purified: nn.Module, make_network) -> None:
    described = json.loads(json.dumps(addition.describe(purified)))
    assert len(described) == 18
    again = make_network().eval()
    addition.restore(again, described, HERE)
    again.load_state_dict(purified.state_dict())
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(again(images), purified(images))
    assert addition.describe(again) == described


def test_nested_additions_are_put_back_outermost_first(purified: nn.Module, make_network) -> None:
    described = addition.describe(purified)
    assert [entry["site"] for entry in described if entry["site"].startswith(SITE)] == [SITE, f"{SITE}.inner"]
    again = make_network()
    addition.restore(again, described, HERE)
    around, within = again.get_submodule(SITE), again.get_submodule("backbone.layer3.0.relu1")
    assert [type(m).__name__ for m in (around, around.inner, around.inner.inner)] == ["Shift", "Cap", "ReLU"]
    assert [type(m).__name__ for m in (within, within.inner, within.inner.inner)] == ["Cap", "Shift", "ReLU"]


def test_a_copy_of_a_network_keeps_its_additions(purified: nn.Module) -> None:
    assert addition.describe(deepcopy(purified)) == addition.describe(purified)


def test_a_network_without_additions(network: nn.Module) -> None:
    assert addition.describe(network) == []
    addition.restore(network, [])


def test_an_addition_must_be_around_what_it_replaces(network: nn.Module) -> None:
    with pytest.raises(AssertionError):
        addition.attach(network, SITE, Cap(nn.ReLU()))


@pytest.mark.parametrize(
    "kind", ["os.system", "torch.nn.ReLU", f"{__name__}.Cap", "backdoor_bench.model.Normalize", "", None]
)
def test_an_untrusted_kind_is_refused(network: nn.Module, kind: str | None) -> None:
    with pytest.raises(UntrustedError):
        addition.restore(network, [{"site": SITE, "kind": kind, "settings": {}}])
    assert isinstance(network.get_submodule(SITE), nn.ReLU)


@pytest.mark.parametrize(
    "change", [{"site": "backbone.layer9"}, {"site": ""}, {"settings": {"colour": "red"}}, {"settings": {"inner": 1}}]
)
def test_a_description_that_does_not_fit_is_refused(network: nn.Module, change: dict[str, Any]) -> None:
    entry = {"site": SITE, "kind": f"{__name__}.Cap", "settings": {}, **change}
    with pytest.raises(UntrustedError, match="a stored Cap does not fit PreActResNet18"):
        addition.restore(network, [entry], HERE)
