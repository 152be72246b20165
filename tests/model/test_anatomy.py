"""What methods ask of a network, on networks small enough to see the answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model import anatomy


class Small(nn.Module):
    """conv - bn - relu, a residual pair with a norm before its convolution, then a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.before = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)
        self.flat = nn.Flatten()
        self.hidden = nn.Linear(16, 5)
        self.gate = nn.Sigmoid()
        self.out = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(images)))
        x = x + self.last(self.before(x))
        logits: Tensor = self.out(self.gate(self.hidden(self.flat(x))))
        return logits


def test_parts_by_name() -> None:
    network = Small()
    assert list(anatomy.batch_norms(network)) == ["bn", "before"]
    assert list(anatomy.convolutions(network)) == ["conv", "last"]
    assert list(anatomy.activations(network)) == ["relu"]
    assert anatomy.head(network) == ("hidden", network.hidden)
    assert anatomy.conv_bn_pairs(network) == {"bn": "conv"}


def test_a_norm_that_cannot_be_scored_is_none() -> None:
    bare = nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, track_running_stats=False))
    assert anatomy.batch_norms(bare) == {}


def test_pairs_of_pre_activation_blocks(network) -> None:
    """bn1 follows a sum or the stem, bn2 the block's first convolution."""
    pairs = anatomy.conv_bn_pairs(network)
    assert pairs.pop("backbone.layer1.0.bn1") == "backbone.conv1"
    assert len(pairs) == 8
    assert all(bn.endswith("bn2") and conv == bn.replace("bn2", "conv1") for bn, conv in pairs.items())


def test_the_head_lies_behind_the_last_convolution() -> None:
    early = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1), nn.Linear(2, 3), nn.Linear(3, 4))
    assert anatomy.head(early) == ("2", early[2])
    with pytest.raises(IncompatibleError, match="Sequential has no Linear layer behind its last convolution"):
        anatomy.head(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1)))


@pytest.mark.parametrize("where", ["input", "output"])
def test_capture(where: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.ReLU())
    images = torch.randn(4, 3, 2, 2)
    expected = images.flatten(1) if where == "input" else network[1](images.flatten(1))
    assert torch.equal(anatomy.capture(network, network[1], images, where), expected)
    assert not network[1]._forward_hooks


def test_capture_leaves_no_hook_after_an_error() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        anatomy.capture(network, network[0], torch.zeros(1, 7))
    assert not network[0]._forward_hooks


def test_what_cannot_be_traced_is_said() -> None:
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(IncompatibleError, match=r"Branching cannot be traced by torch\.fx"):
        anatomy.conv_bn_pairs(Branching())


def test_in_batches_is_the_same_as_at_once() -> None:
    images = torch.arange(7.0, requires_grad=True)
    sizes = []

    def double(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return 2 * part

    doubled = anatomy.in_batches(double, images, 3)
    assert torch.equal(doubled, 2 * images)
    assert sizes == [3, 3, 1]
    assert not doubled.requires_grad


@pytest.mark.parametrize("part", anatomy.PARTS)
def test_required_parts(part: str) -> None:
    assert anatomy.PARTS[part](Small())
    assert not anatomy.PARTS[part](nn.Sequential(nn.Flatten()))
