"""What methods ask of a network, on networks small enough to see the answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import (
    VisionTransformer,
    densenet121,
    efficientnet_b0,
    mobilenet_v3_small,
    resnet18,
    vgg11,
)

from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model import Network, anatomy
from backdoor_bench.model.timm import TimmNetwork


def vit() -> VisionTransformer:
    return VisionTransformer(32, 8, 2, 2, 8, 16)


class Small(nn.Module):
    """conv - bn - relu, a residual pair with a norm before its convolution, then a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.before = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.flat = nn.Flatten()
        self.hidden = nn.Linear(16, 5)
        self.gate = nn.Sigmoid()
        self.out = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(images)))
        x = x + self.last(self.before(x))
        logits: Tensor = self.out(self.gate(self.hidden(self.flat(self.pool(x)))))
        return logits


def test_parts_by_name() -> None:
    network = Small()
    assert list(anatomy.batch_norms(network)) == ["bn", "before"]
    assert list(anatomy.convolutions(network)) == ["conv", "last"]
    assert list(anatomy.activations(network)) == ["relu"]
    assert anatomy.head(network) == ("hidden", network.hidden)
    assert anatomy.classifier(network) == ("out", network.out)
    assert anatomy.last_convolution(network) == ("last", network.last)
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


class Backwards(nn.Module):
    """Registered from the head to the stem; a gate of Linear layers comes behind the last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.head, self.gate = nn.Linear(3, 2), nn.Linear(4, 3), nn.Linear(4, 4)
        self.late, self.early = nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 1)
        self.rest = nn.ReLU()
        self.idle = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.late(self.early(images))
        maps = self.rest(maps * self.gate(maps.mean((2, 3))).sigmoid()[:, :, None, None])
        logits: Tensor = self.out(self.head(maps.mean((2, 3))))
        return logits


def test_what_lies_behind_what_is_a_matter_of_the_forward() -> None:
    network = Backwards()
    assert anatomy.head(network) == ("head", network.head)
    assert anatomy.classifier(network) == ("out", network.out)
    assert anatomy.last_convolution(network) == ("late", network.late)
    assert list(anatomy.neurons(network, "linear")) == ["head.weight", "gate.weight", "idle.weight"]
    images = torch.rand(3, 3, 4, 4)
    features = anatomy.penultimate(network, images)
    assert torch.equal(network.out(features), network(images))


@pytest.mark.parametrize("mode", [True, False])
def test_asking_leaves_the_network_as_it_was(mode: bool) -> None:
    network = Small().train(mode)
    network.bn.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    anatomy.head(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training is mode
    assert not network.bn.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (resnet18, ("fc", "fc", "layer4.1.conv2", 20)),
        (vgg11, ("classifier.0", "classifier.6", "features.18", 0)),
        pytest.param(
            densenet121,
            ("classifier", "classifier", "features.denseblock4.denselayer16.conv2", 59),
            marks=pytest.mark.slow,
        ),
        pytest.param(mobilenet_v3_small, ("classifier.0", "classifier.3", "features.12.0", 34), marks=pytest.mark.slow),
        pytest.param(efficientnet_b0, ("classifier.1", "classifier.1", "features.8.0", 49), marks=pytest.mark.slow),
        (vit, ("heads.head", "heads.head", "conv_proj", 0)),
    ],
)
def test_published_networks(make: Callable[..., nn.Module], expected: tuple[str, str, str, int]) -> None:
    with torch.device("meta"):
        network = make()
    head, classifier, last, pairs = expected
    assert anatomy.head(network)[0] == head
    assert anatomy.classifier(network)[0] == classifier
    assert anatomy.last_convolution(network)[0] == last
    assert len(anatomy.conv_bn_pairs(network)) == pairs


class Excited(nn.Module):
    """A squeeze-and-excitation behind the last convolution, as in seresnet18; logits from a convolution or a Linear."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.last = last

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        maps = maps * self.excite(self.squeeze(maps.mean((2, 3), keepdim=True)).relu()).sigmoid()
        pooled = maps.mean((2, 3), keepdim=True)
        logits: Tensor = self.last(pooled if isinstance(self.last, nn.Conv2d) else pooled.flatten(1))
        return logits.flatten(1)


@pytest.mark.parametrize("last", [nn.Conv2d(4, 5, 1), nn.Linear(4, 5)])
def test_gates_and_classifiers_are_no_feature_maps(last: nn.Module) -> None:
    network = Excited(last)
    assert anatomy.last_convolution(network)[0] == "conv"
    neurons = ["conv.weight", "squeeze.weight", "excite.weight"]
    assert list(anatomy.neurons(network)) == neurons


class Distilled(nn.Module):
    """Two heads, and the mean of their logits (DeiT); or one of three Linear layers of one width alone."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.merged, self.head, self.head_dist = merged, nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean((2, 3))
        if self.merged:
            return (self.head(features) + self.head_dist(features)) / 2
        return self.head_dist(self.head(features))  # type: ignore[no-any-return]


def test_logits_of_several_heads_have_no_one_classifier() -> None:
    with pytest.raises(IncompatibleError, match=r"Distilled makes its logits of several .* \(head, head_dist\)"):
        anatomy.classifier(Distilled(True))
    assert anatomy.neurons(Distilled(True), "linear") == {}
    assert anatomy.classifier(Distilled(False))[0] == "head_dist"
    assert list(anatomy.neurons(Distilled(False), "linear")) == ["head.weight"]


def test_relu6_is_an_activation() -> None:
    """torch computes it by hardtanh."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU6(), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 32, 32))
    assert list(anatomy.activations(network)) == ["1"]


@pytest.mark.parametrize(
    ("name", "conv", "classifier", "activations"),
    [
        ("seresnet18", "layer4.1.conv2", "fc", 25),
        ("dla34", "level5.root.conv", None, 21),
        ("resnetv2_50", "stages.3.blocks.2.conv3", None, 49),
        ("starnet_s1", "stages.3.3.dwconv2.conv", "head", 16),
        ("regnety_002", "s4.b7.conv3.conv", "head.fc", 53),
        ("mobilevit_xxs", "final_conv.conv", "head.fc", 25),
        ("swin_tiny_patch4_window7_224", "patch_embed.proj", "head.fc", 12),
        ("mixer_s16_224", "stem.proj", "head", 16),
        ("deit_tiny_distilled_patch16_224", "patch_embed.proj", None, 24),
    ],
)
def test_networks_of_timm(name: str, conv: str, classifier: str | None, activations: int) -> None:
    """Of other kinds than the published ones, without a number computed."""
    with torch.device("meta"):
        network = TimmNetwork(f"timm:{name}", 10)
    assert anatomy.last_convolution(network)[0].endswith(f".{conv}")
    assert len(anatomy.activations(network)) == activations
    if classifier is None:
        with pytest.raises(IncompatibleError, match=r"has no Linear layer|makes its logits of several"):
            anatomy.classifier(network)
    else:
        assert anatomy.classifier(network)[0].endswith(f".{classifier}")


def test_images_too_small_for_a_network_of_timm() -> None:
    with torch.device("meta"):
        network, enlarging = TimmNetwork("timm:inception_v3", 10), TimmNetwork("timm:inception_v3", 10, resize=299)
    with pytest.raises(IncompatibleError, match=r"if they are too small for it, model\.resize=SIDE enlarges them"):
        anatomy.classifier(network)
    assert anatomy.classifier(enlarging)[0] == "backbone.1.fc"


def test_a_weight_that_is_computed_cannot_be_pruned() -> None:
    from torch.nn.utils.parametrizations import spectral_norm

    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    spectral_norm(network[0])
    for question in (anatomy.neurons, anatomy.conv_bn_pairs):
        with pytest.raises(IncompatibleError, match=r"the weight of '0' \(ParametrizedConv2d\) is computed anew"):
            question(network)
    assert anatomy.head(network)[0] == "4"
    nn.utils.parametrize.remove_parametrizations(network[0], "weight")
    assert list(anatomy.neurons(network)) == ["0.weight"]
    nn.utils.spectral_norm(network[4])  # the older way
    with pytest.raises(IncompatibleError, match=r"the weight of '4' \(Linear\)"):
        anatomy.head(network)


def test_a_network_without_a_head() -> None:
    with pytest.raises(IncompatibleError, match="Sequential has no Linear layer behind its last feature map"):
        anatomy.head(nn.Sequential(nn.Linear(32, 2), nn.Conv2d(3, 1, 1)))
    with pytest.raises(IncompatibleError, match="Sequential has no convolution"):
        anatomy.last_convolution(nn.Sequential(nn.Flatten()))


def test_a_network_that_cannot_be_run_says_why() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(7, 2))
    with pytest.raises(
        IncompatibleError, match=r"Sequential cannot be run on images of \(2, 3, 32, 32\) \(RuntimeError"
    ):
        anatomy.head(network)
    assert anatomy.head(nn.Sequential(nn.Flatten(), nn.Linear(27, 2)), torch.zeros(2, 3, 3, 3))[0] == "1"


def test_something_added_in_place_is_another_tensor() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.same = nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.conv(images)
            self.same(maps)
            maps += images
            return self.bn(maps)

    assert anatomy.conv_bn_pairs(Added()) == {"same": "conv"}


def test_parameters_of_a_channel() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False))
    network.append(nn.MultiheadAttention(4, 2))
    assert list(anatomy.channel_parameters(network, "0.weight", ["1"])) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(anatomy.channel_parameters(network, "2.weight")) == ["2.weight"]
    assert list(anatomy.channel_parameters(network, "3.in_proj_weight")) == ["3.in_proj_weight", "3.in_proj_bias"]


def test_what_a_network_is_called() -> None:
    assert anatomy.title(Small()) == "Small"
    assert anatomy.title(Network(resnet18(), 4)) == "Network (ResNet)"
    assert anatomy.title(Network(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), 2)) == "Network"


def test_capture_is_not_overwritten_by_what_works_in_place() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True))
    images = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 2.0, -3.0]])
    with torch.no_grad():
        expected = network[0](images)
        assert (expected < 0).any()
        assert torch.equal(anatomy.capture(network, network[0], images, "output"), expected)
        assert torch.equal(anatomy.capture(network, network[1], images), expected)


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
        anatomy.trace(Branching())
    assert anatomy.conv_bn_pairs(Branching()) == {}


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
    assert anatomy.PARTS[part](Small(), None)
    assert not anatomy.PARTS[part](nn.Sequential(nn.Flatten()), torch.zeros(2, 3, 4, 4))
