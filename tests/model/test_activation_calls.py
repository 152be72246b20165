"""Every activation gets a module of its own, and nothing else about the network changes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from backdoor_bench.errors import IncompatibleError, UntrustedError
from backdoor_bench.model import addition
from backdoor_bench.model.activation_calls import ActivationCalls, separate
from backdoor_bench.stage.clip import Clip, install
from tests.model.functional import Functional


class Block(nn.Module):
    """One in-place module twice, and a block inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.inner = nn.ReLU(inplace=True), Functional(F.gelu)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(self.relu(x + 0.2))
        out += x
        return self.relu(out)


class Mixed(nn.Module):
    """A module called once, a block with a nested one, and a function in the outermost forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.SiLU())
        self.block, self.head = Block(), nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.block(self.stem(images))
        maps = maps - maps.mean()
        maps.relu_()  # nobody takes the result
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


SITES = [
    "stem.2",
    "block.activation_calls.0",
    "block.inner.activation_calls.0",
    "block.activation_calls.1",
    "activation_calls.0",
]


@pytest.fixture
def mixed() -> Mixed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Mixed().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        torch.relu,
        Tensor.relu,
        Tensor.relu_,
        torch.relu_,
        F.relu6,
        F.gelu,
        F.silu,
        F.hardswish,
        F.elu_,
        F.mish,
        F.softplus,
        lambda x: F.relu(x, inplace=True),
        lambda x: F.leaky_relu(x, 0.2, True),
        lambda x: F.prelu(x, torch.tensor(0.1)),
    ],
)
def test_functions_and_their_in_place_twins(function: Callable[[Tensor], Tensor], images: Tensor) -> None:
    network = Functional(function)
    expected = network(images)
    assert separate(network) == ["activation_calls.0"]
    assert torch.equal(network(images), expected)
    install(network, {"activation_calls.0": torch.full((3, 6, 6), 0.25)})
    assert torch.equal(network(images), expected.clamp(max=0.25))


@pytest.mark.parametrize("function", [torch.sigmoid, F.hardsigmoid, torch.tanh, lambda x: x.clamp(min=0)])
def test_gates_are_none(function: Callable[[Tensor], Tensor]) -> None:
    assert separate(Functional(function)) == []


def test_one_name_per_call_in_forward_order(mixed: Mixed, images: Tensor) -> None:
    assert separate(mixed) == SITES
    assert separate(mixed, images) == SITES  # a second time it is the same
    assert isinstance(mixed, Mixed)
    assert type(mixed).__name__ == "Mixed"


def test_nothing_else_changes(mixed: Mixed, images: Tensor) -> None:
    twin = deepcopy(mixed)
    separate(twin)
    assert list(twin.state_dict()) == list(mixed.state_dict())
    for mode in (False, True):
        twin.train(mode), mixed.train(mode)
        results = [(network, network(images)) for network in (twin, mixed)]
        assert torch.equal(results[0][1], results[1][1])
        gradients = [torch.autograd.grad(logits.sum(), list(network.parameters())) for network, logits in results]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
        assert torch.equal(twin.stem[1].running_mean, mixed.stem[1].running_mean)
    last = images.contiguous(memory_format=torch.channels_last)
    placed = twin.eval().to(memory_format=torch.channels_last)
    assert torch.equal(placed(last), mixed.eval().to(memory_format=torch.channels_last)(last))


@pytest.mark.parametrize("number", range(5))
def test_each_site_bounds_its_own_call(number: int, mixed: Mixed, images: Tensor) -> None:
    """Against a hand-written forward with one clamp in it."""

    def by_hand(clamped: int) -> Tensor:
        bound = lambda x, site: x.clamp(max=0.2) if site == clamped else x  # noqa: E731
        x = bound(mixed.stem(images), 0)
        out = bound(F.relu(x + 0.2), 1)
        out = bound(F.gelu(mixed.block.inner.conv(out)), 2)
        out = bound(F.relu(out + x), 3)
        return mixed.head(bound(F.relu(out - out.mean()), 4).mean((2, 3)))

    expected, whole = by_hand(number), mixed(images)
    assert torch.equal(by_hand(-1), whole)
    sites = separate(mixed)
    (clip,) = install(mixed, {sites[number]: torch.full((3, 6, 6), 0.2)}).values()
    assert torch.allclose(mixed(images), expected, atol=1e-6)
    assert not torch.allclose(expected, whole, atol=1e-4)
    bound = clip.bound.requires_grad_()
    (gradient,) = torch.autograd.grad(mixed(images).sum(), bound)
    assert gradient.any()


@pytest.fixture
def clipped(mixed: Mixed) -> Mixed:
    install(mixed, {site: torch.full((3, 1, 1), 0.1 * number) for number, site in enumerate(separate(mixed), start=1)})
    return mixed


@pytest.mark.parametrize("copied", [deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_is_clipped_by_its_own_bounds(
    copied: Callable[[nn.Module], nn.Module], clipped: Mixed, images: Tensor
) -> None:
    expected = clipped(images)
    twin = copied(clipped)
    for clip in clipped.modules():
        if isinstance(clip, Clip):
            clip.bound.fill_(torch.inf)
    assert torch.equal(twin(images), expected)
    assert not torch.equal(clipped(images), expected)


def test_is_stored_and_built_again(clipped: Mixed, images: Tensor) -> None:
    described = json.loads(json.dumps(addition.describe(clipped)))
    assert len(described) == 3 + 5  # three owners, five clips
    again = Mixed().eval()
    addition.restore(again, described)
    again.load_state_dict(clipped.state_dict())
    assert torch.equal(again(images), clipped(images))
    assert addition.describe(again) == described


def test_a_part_taken_out_is_still_clipped(clipped: Mixed, images: Tensor) -> None:
    assert clipped.block(images).max() <= 0.4
    clips = [module for module in clipped.block.modules() if isinstance(module, Clip)]
    assert len(clips) == 3
    clips[-1].bound.fill_(torch.inf)
    assert clipped.block(images).max() > 0.4


def test_a_trace_of_it_agrees(clipped: Mixed, images: Tensor) -> None:
    traced = torch.jit.trace(clipped, images)
    assert torch.equal(traced(images.flip(0)), clipped(images.flip(0)))


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_export_of_it_agrees(strict: bool, clipped: Mixed, images: Tensor) -> None:
    exported = torch.export.export(clipped, (images,), strict=strict)
    assert torch.allclose(exported.module()(images.flip(0)), clipped(images.flip(0)), atol=1e-6)


def test_a_module_under_several_names(images: Tensor) -> None:
    shared = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 3, 1), shared, nn.Flatten())
    expected = network(images)
    assert separate(network) == ["1", "3"]
    assert torch.equal(network(images), expected)
    install(network, {"3": torch.full((3, 1, 1), 0.05)})
    assert torch.equal(network(images), expected.clamp(max=0.05))


def test_a_weight_of_an_activation_keeps_its_name(images: Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.PReLU(3))
    assert separate(network) == ["1.activation_calls.0"]
    install(network, {"1.activation_calls.0": torch.zeros(3, 1, 1)})
    assert "1.weight" in network.state_dict()
    assert network(images).max() <= 0


def test_the_output_of_attention_blocks(images: Tensor) -> None:
    network = VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=4).eval()
    nn.init.normal_(network.heads.head.weight)  # zeros otherwise
    images = F.interpolate(images, 32)
    expected = network(images)
    names = [f"encoder.layers.encoder_layer_{number}" for number in range(2)]
    sites = [f"{name}.{site}" for name in names for site in ("self_attention.activation_calls.output", "mlp.1")]
    assert separate(network) == sites
    assert torch.equal(network(images), expected)
    # A bound of 0 on features that may be negative: what is left is what was below it.
    install(network, {sites[0]: torch.zeros(17, 8)})
    attention, inputs = network.encoder.layers[0], torch.randn(2, 17, 8)
    assert attention.self_attention(inputs, inputs, inputs)[0].max() <= 0
    assert not torch.allclose(network(images), expected)


class Changing(nn.Module):
    """Computes another activation where its images are bright."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.conv(x))
        return F.relu(maps) if x.mean() > 0.9 else maps


def test_another_number_of_activations_than_counted(images: Tensor) -> None:
    network = Changing()
    assert separate(network) == ["activation_calls.0"]
    network(images)
    with pytest.raises(IncompatibleError, match="computed 2 activations, and 1 when"):
        network(torch.ones_like(images))


@pytest.mark.parametrize(
    "change",
    [
        {"site": "block.other"},
        {"site": "nothing.activation_calls"},
        {"settings": {"positions": [3], "total": 2}},
        {"settings": {"positions": [1, 0], "total": 2}},
        {"settings": {"positions": "all", "total": 2}},
        {"settings": {}},
    ],
)
def test_a_stored_description_that_does_not_fit(change: dict[str, Any], mixed: Mixed) -> None:
    kind = f"{ActivationCalls.__module__}.ActivationCalls"
    entry = {"site": "block.activation_calls", "kind": kind, "settings": {"positions": [0], "total": 3}}
    with pytest.raises(UntrustedError, match="a stored ActivationCalls does not fit Mixed"):
        addition.restore(mixed, [{**entry, **change}])
    addition.restore(mixed, [entry])
    with pytest.raises(UntrustedError, match="does not fit"):
        addition.restore(mixed, [entry])
