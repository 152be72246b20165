"""Every architecture has the published sizes, gives logits and takes a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench import config as configuration
from backdoor_bench.attack.base import Victim
from backdoor_bench.bench import make_model
from backdoor_bench.dataset import Augmentation, Batches, ImageSet
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model import Network, architecture
from backdoor_bench.numerics import Numerics
from backdoor_bench.training import Recipe, fit

Compose = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Published:
    """With 10 classes, at 32x32. ``affine``: BatchNorm's weights and biases; ``site`` gives the last map."""

    parameters: int
    norms: int
    affine: int
    conv_neurons: int
    site: str
    last_map: tuple[int, ...]
    slow: bool = False


TABLE = {
    "preact_resnet18": Published(11_171_146, 16, 6_784, 4_800, "layer4", (512, 4, 4)),
    "preact_resnet34": Published(21_279_306, 32, 14_208, 8_512, "layer4", (512, 4, 4)),
    "resnet18": Published(11_181_642, 20, 9_600, 4_800, "layer4", (512, 1, 1)),
    "resnet18_cifar": Published(11_173_962, 20, 9_600, 4_800, "layer4", (512, 4, 4)),
    "resnet101": Published(42_520_650, 104, 105_344, 52_672, "layer4", (2048, 1, 1), slow=True),
    "vgg11": Published(128_807_306, 0, 0, 2_752, "features", (512, 1, 1), slow=True),
    "vgg19_bn": Published(139_622_218, 16, 11_008, 5_504, "features", (512, 1, 1), slow=True),
    "densenet161": Published(26_494_090, 161, 219_936, 20_448, "features", (2208, 1, 1), slow=True),
    "mobilenet_v3_large": Published(4_214_842, 46, 24_400, 17_280, "features", (960, 1, 1)),
    "efficientnet_b3": Published(10_711_602, 78, 87_296, 63_728, "features", (1536, 1, 1), slow=True),
    "wide_resnet": Published(66_854_730, 53, 68_224, 34_112, "layer4", (2048, 1, 1), slow=True),
    "vit_b_16": Published(86_567_656 - 990 * 769, 0, 0, 768, "1.conv_proj", (768, 14, 14), slow=True),
}
TEMPLATES = {"timm", "torchvision"}
"""They need a name."""
OURS = {"preact_resnet18", "preact_resnet34", "resnet18_cifar"}


def options(compose: Compose, name: str, *overrides: str) -> dict[str, Any]:
    node: dict[str, Any] = compose(f"model={name}", "recipe.width=64", *overrides)["model"]
    return node


def on_meta(node: dict[str, Any], num_classes: int = 10) -> Network:
    """140 million weights need no memory to be counted."""
    with torch.device("meta"):
        return make_model(node, num_classes)


def test_every_configured_network_is_in_the_table() -> None:
    files = {path.stem for path in (configuration.directory() / "model").glob("*.yaml")}
    assert files - TEMPLATES == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_sizes_and_shapes(name: str, compose: Compose) -> None:
    expected, node = TABLE[name], options(compose, name)
    network = on_meta(node)
    assert architecture(node) == network.name == name
    assert sum(parameter.numel() for parameter in network.parameters()) == expected.parameters
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == expected.norms
    assert sum(norm.weight.numel() + norm.bias.numel() for norm in norms) == expected.affine
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert sum(convolution.out_channels for convolution in convolutions) == expected.conv_neurons
    maps: list[torch.Size] = []
    network.backbone.get_submodule(expected.site).register_forward_hook(lambda *call: maps.append(call[-1].shape))
    assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert maps == [(2, *expected.last_map)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if row.slow else []) for name, row in TABLE.items()]
)
def test_one_training_step(name: str, compose: Compose, numerics: Numerics) -> None:
    """Through Lightning, as a victim is trained: every parameter gets a gradient, every BatchNorm sees the batch."""
    torch.manual_seed(0)
    network = numerics.place(make_model(options(compose, name, "recipe.width=8"), 10)).train()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    recipe = Recipe(epochs=1, batch_size=2, optimizer=partial(torch.optim.SGD, lr=0.01))
    victim = Victim(network, recipe, Augmentation(), numerics, torch.Generator())
    history = fit(victim, Batches(ImageSet(images, torch.tensor([3, 7])), 2), 1, numerics, name)
    assert len(history.loss) == 1
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 1 for norm in norms)


def test_a_last_batch_of_one_image_is_merged_and_batches_of_one_are_refused(
    compose: Compose, numerics: Numerics
) -> None:
    """BatchNorm over a single 1x1 map has no variance: at 32x32 every network of torchvision ends in such maps."""
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet(images, torch.arange(5))
    recipe = Recipe(epochs=1, batch_size=2, optimizer=partial(torch.optim.SGD, lr=0.01))
    network = make_model(options(compose, "torchvision", "model.name=shufflenet_v2_x0_5"), 10).train()
    victim = Victim(network, recipe, Augmentation(), numerics, torch.Generator())
    batches = Batches(data, 2)
    assert batches.sizes == [2, 3]
    fit(victim, batches, 1, numerics, "train")
    with pytest.raises(IncompatibleError, match="at least two images in a batch; use a larger batch_size"):
        fit(victim, Batches(data, 1), 1, numerics, "train")


def test_mobilenet_keeps_its_own_batch_norm(compose: Compose) -> None:
    network = on_meta(options(compose, "mobilenet_v3_large"))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_vit_is_resized_inside_and_has_backdoorbenchs_names(compose: Compose) -> None:
    network = on_meta(options(compose, "vit_b_16"))
    assert sum(isinstance(module, nn.LayerNorm) for module in network.modules()) == 25
    assert all(name.startswith("backbone.1.") for name in network.state_dict())
    assert network.get_parameter("backbone.1.heads.head.weight").shape == (10, 768)
    seen = []
    network.backbone[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    network(torch.empty(2, 3, 64, 64, device="meta"))
    assert seen == [(2, 3, 224, 224)]


@pytest.mark.parametrize("name", sorted(TABLE.keys() - OURS))
def test_only_our_own_networks_have_a_width(name: str, compose: Compose) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has no width; only the networks of backdoor_bench's own have"):
        make_model(options(compose, name), 10, width=8)


@pytest.mark.parametrize("name", sorted(OURS))
def test_width_and_depth_of_our_own(name: str, compose: Compose) -> None:
    network = make_model(options(compose, name, "model.blocks=[1,2,1,1]", "model.width=2"), 3)
    assert [len(network.backbone.get_submodule(f"layer{n}")) for n in (1, 2, 3, 4)] == [1, 2, 1, 1]
    assert network.backbone.linear.in_features == 16
    assert network(torch.rand(2, 3, 48, 48)).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"model\.blocks=\[1, 2\], model\.width=2: expected four numbers of blocks"):
        make_model(options(compose, name, "model.blocks=[1,2]", "model.width=2"), 3)


def test_the_options_of_a_network_are_checked_by_its_builder(compose: Compose) -> None:
    with pytest.raises(ConfigError, match=r"unknown torchvision network 'resnet17'\. Did you mean resnet1"):
        make_model(options(compose, "torchvision", "model.name=resnet17"), 10)
    with pytest.raises(ConfigError, match="resize=0: expected a side in pixels"):
        make_model(options(compose, "resnet18", "model.resize=0"), 10)
