from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model import addition, anatomy
from backdoor_bench.stage import Bounds, DefenderView
from backdoor_bench.stage.clip import Clip, ClipActivations, clip_above, install


def test_clip_above_by_hand() -> None:
    activations = torch.tensor([[-1.0, 0.5, 3.0], [2.0, 2.0, 2.0]])
    bound = torch.tensor([1.0, -2.0, 2.5])  # a bound under zero clips at zero
    assert torch.equal(clip_above(activations, bound), torch.tensor([[-1.0, 0.0, 2.5], [1.0, 0.0, 2.0]]))


def test_the_gradient_reaches_active_positive_bounds_only() -> None:
    bound = torch.tensor([1.0, 1.0, -1.0], requires_grad=True)
    clip_above(torch.tensor([[2.0, 0.5, 2.0]]), bound).sum().backward()
    assert bound.grad is not None
    assert bound.grad.tolist() == [1.0, 0.0, 0.0]


def test_channel_bounds_spread_over_the_map() -> None:
    maps = torch.arange(8.0).view(1, 2, 2, 2)
    assert clip_above(maps, torch.tensor([1.0, 5.0]).view(2, 1, 1)).flatten().tolist() == [0, 1, 1, 1, 4, 5, 5, 5]


def test_a_low_precision_stays_what_it_is() -> None:
    assert clip_above(torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(2)).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 1, 4), (3, 2, 2), (2,)])
def test_another_input_size_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(IncompatibleError, match="one input size"):
        clip_above(torch.zeros(1, 2, 2, 2) if shape != (2, 1, 4) else torch.zeros(1, 2, 1, 1), torch.ones(shape))


def bounds_of(network: nn.Module, value: float) -> Bounds:
    shapes = {}
    for name, module in anatomy.activations(network).items():
        shapes[name] = anatomy.capture(network, module, torch.zeros(1, 3, 32, 32), "output").shape[1:]
    draws = torch.Generator().manual_seed(0)
    return Bounds({name: value * torch.rand(shape, generator=draws) for name, shape in shapes.items()})


def test_the_stage_clips_every_site_and_images_of_another_size_are_refused(
    network: nn.Module, defender_view: DefenderView
) -> None:
    images = torch.rand(4, 3, 32, 32)
    bounds = bounds_of(network, 0.3)
    ClipActivations().run(network, defender_view, bounds)
    for name, bound in bounds.values.items():
        assert isinstance(network.get_submodule(name), Clip)
        assert (anatomy.capture(network, network.get_submodule(name), images, "output") <= bound).all()
    with pytest.raises(IncompatibleError, match="one input size"):
        network(torch.rand(4, 3, 48, 48))


def test_infinite_bounds_change_nothing(network: nn.Module) -> None:
    images = torch.rand(4, 3, 32, 32)
    before = network(images)
    install(network, {name: torch.full_like(b, torch.inf) for name, b in bounds_of(network, 1.0).values.items()})
    assert torch.equal(network(images), before)


def test_a_clipped_network_survives_being_stored(network: nn.Module, make_network: Callable[..., nn.Module]) -> None:
    install(network, bounds_of(network, 0.3).values)
    images = torch.rand(4, 3, 32, 32)
    again = make_network().eval()
    addition.restore(again, addition.describe(network))
    again.load_state_dict(network.state_dict())
    again.eval()
    assert torch.equal(again(images), network(images))
    assert addition.describe(again) == addition.describe(network)


def test_a_clipped_network_can_be_copied_traced_and_clipped_again(network: nn.Module) -> None:
    pairs = anatomy.conv_bn_pairs(network)
    install(network, bounds_of(network, 0.3).values)
    twin = copy.deepcopy(network)
    assert anatomy.conv_bn_pairs(twin) == pairs
    images = torch.rand(4, 3, 32, 32)
    once = twin(images)
    assert len(install(twin, bounds_of(twin, 100.0).values)) == 16
    assert torch.equal(twin(images), once)
