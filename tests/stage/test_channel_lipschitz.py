from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model.vgg19_bn import VGG19BN
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.channel_lipschitz import (
    ChannelLipschitz,
    channel_lipschitz,
    module_order_pairs,
    spectral_norms,
)


def test_spectral_norm_by_hand() -> None:
    # [[3, 0], [0, 4]]: singular values 3 and 4. [[1, 1], [1, 1]]: 2 and 0. A silent filter: 0.
    weight = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert spectral_norms(weight.view(3, 2, 1, 2)).tolist() == pytest.approx([4, 2, 0])


@pytest.mark.parametrize("shape", [(5, 20, 3, 3), (5, 2, 3, 3), (4, 1, 5, 5), (6, 7, 1, 1)])
def test_spectral_norm_is_the_largest_singular_value(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(weight.double().flatten(2))[:, 0]
    assert torch.allclose(spectral_norms(weight), expected, rtol=1e-12)


def test_a_depthwise_kernel_has_its_euclidean_norm() -> None:
    conv = nn.Conv2d(4, 4, 3, groups=4)
    assert torch.allclose(spectral_norms(conv.weight), conv.weight.detach().double().flatten(1).norm(dim=1))


def test_the_bound_scales_with_gamma_over_the_deviation() -> None:
    conv, norm = nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0.0)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([2.0, -2.0, 2.0]).view(3, 1, 1, 1))
        norm.weight.copy_(torch.tensor([1.0, -3.0, 0.0]))
        norm.running_var.copy_(torch.tensor([4.0, 1.0, 1.0]))
    assert channel_lipschitz(conv, norm).tolist() == pytest.approx([1, 6, 0])
    assert channel_lipschitz(conv).tolist() == pytest.approx([2, 2, 2])


def test_a_dead_channel_stays_finite_and_is_reported(defender_view: DefenderView) -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    network[1].running_var.copy_(torch.tensor([0.0, 1.0]))
    scores = ChannelLipschitz().run(network, defender_view)
    assert scores.values["1"].isfinite().all()
    assert scores.report == {"layers": 1, "channels": 2, "dead_channels": 1}


def test_on_a_pre_activation_network_the_two_pairings_differ(network: nn.Module, defender_view: DefenderView) -> None:
    graph = ChannelLipschitz().pairs(network)
    blocks = [f"backbone.layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    stem = {"backbone.layer1.0.bn1": "backbone.conv1"}
    assert graph == stem | {f"{block}.bn2": f"{block}.conv1" for block in blocks}
    order = ChannelLipschitz(pairing="module_order").pairs(network)
    assert len(order) == 16
    assert order.items() >= graph.items()
    assert order["backbone.layer2.1.bn1"] == "backbone.layer2.0.shortcut"  # the trap: its input is conv2 + shortcut
    assert order["backbone.layer1.1.bn1"] == "backbone.layer1.0.conv2"
    assert len(ChannelLipschitz(lone_convolutions=True).run(network, defender_view).values) == 9 + 11


def test_on_vgg_the_two_pairings_agree() -> None:
    with torch.device("meta"):
        network = VGG19BN(4)
    pairs = ChannelLipschitz().pairs(network)
    assert len(pairs) == 16
    assert pairs == module_order_pairs(network)


class Joined(nn.Module):
    """A BatchNorm behind a concatenation, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
        self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.stem(x))
        return self.norm(torch.cat([x, self.conv(x)], 1)).mean((2, 3))


def test_a_concatenation_is_no_pair_and_stops_module_order_before_any_work(defender_view: DefenderView) -> None:
    assert ChannelLipschitz().pairs(Joined()) == {"norm0": "stem"}
    with pytest.raises(IncompatibleError, match=re.escape("joins norm (5 channels) with conv (3)")):
        ChannelLipschitz(pairing="module_order").check(Joined(), defender_view)


def test_a_network_without_pairs(defender_view: DefenderView) -> None:
    bare = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    with pytest.raises(IncompatibleError, match="need a convolution followed by BatchNorm2d, and Sequential has none"):
        ChannelLipschitz().check(bare, defender_view)
    assert list(ChannelLipschitz(lone_convolutions=True).run(bare, defender_view).values) == ["0"]


def test_an_unknown_pairing() -> None:
    with pytest.raises(ConfigError, match="pairing=nearest"):
        ChannelLipschitz(pairing="nearest")
