"""PreActResNet18 has the published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoor_bench.model import anatomy
from backdoor_bench.model.preact_resnet18 import PreActResNet18


@pytest.fixture(scope="module")
def published() -> PreActResNet18:
    with torch.device("meta"):
        return PreActResNet18(num_classes=10)


def test_parameters(published: PreActResNet18) -> None:
    assert sum(parameter.numel() for parameter in published.parameters()) == 11_171_146


def test_batch_norms(published: PreActResNet18) -> None:
    norms = anatomy.batch_norms(published)
    assert len(norms) == 16
    assert sum(norm.num_features for norm in norms.values()) == 3_392


def test_conv_neurons(published: PreActResNet18) -> None:
    neurons = {name: conv.out_channels for name, conv in anatomy.convolutions(published).items()}
    assert sum(neurons.values()) == 4_800
    assert sum(count for name, count in neurons.items() if "shortcut" not in name) == 3_904


def test_the_last_map_is_512_by_4_by_4(published: PreActResNet18) -> None:
    images = torch.empty(2, 3, 32, 32, device="meta")
    assert anatomy.capture(published, published.backbone.pool, images).shape == (2, 512, 4, 4)
    assert published(images).shape == (2, 10)


def test_other_widths_classes_and_sizes() -> None:
    network = PreActResNet18(num_classes=43, width=2)
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 43)
    assert network.num_classes == 43
    assert network.backbone.linear.in_features == 16


def test_normalisation_is_the_first_layer_and_is_not_stored() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.5)
    network = PreActResNet18(num_classes=4, width=2, mean=mean, std=std).eval()
    bare = PreActResNet18(num_classes=4, width=2).eval()
    bare.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 8, 8)
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(network(images), bare(by_hand))
    assert not any("normalize" in name for name in network.state_dict())


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5,)), ((0, 0, 0), (1, 0, 1)), ((0, 0, 0), (1, 1))])
def test_wrong_statistics_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected three means and three positive deviations"):
        PreActResNet18(num_classes=4, width=2, mean=mean, std=std)


def test_a_block_by_hand() -> None:
    """With weights of zero behind the shortcut, a block is its input; where the shape changes, a 1x1 convolution."""
    network = PreActResNet18(num_classes=4, width=2).eval()
    same, halved = network.backbone.layer1[0], network.backbone.layer2[0]
    for block in (same, halved):
        nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 2, 8, 8)
    assert torch.equal(same(x), x)
    activated = halved.relu1(halved.bn1(x))
    expected = torch.einsum("oi,bihw->bohw", halved.shortcut.weight[:, :, 0, 0], activated[:, :, ::2, ::2])
    torch.testing.assert_close(halved(x), expected)
