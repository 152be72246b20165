"""Resizing is torchvision's; tensors are found under the names that others give them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as reference

from backdoor_bench.model import Network, Resize, architecture
from backdoor_bench.model.preact_resnet18 import PreActResNet18
from backdoor_bench.model.torchvision import TorchvisionNetwork


@pytest.mark.parametrize(("size", "side"), [(32, 224), (32, 7), (8, 8)])
def test_resizing_is_torchvisions(size: int, side: int) -> None:
    images = torch.rand(2, 3, size, size)
    torch.testing.assert_close(Resize(side)(images), reference.resize(images, [side, side], antialias=True))


def test_a_resized_network_is_its_backbone_on_resized_normalised_images() -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    network = Network(inner, 5, (0.5, 0.5, 0.5), (0.1, 0.2, 0.4), resize=4)
    images = torch.rand(2, 3, 8, 8)
    normal = (images - 0.5) / torch.tensor([0.1, 0.2, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(network(images), inner(reference.resize(normal, [4, 4], antialias=True)))
    assert list(network.state_dict()) == ["backbone.1.1.weight", "backbone.1.1.bias"]


def renamed(tensors: dict[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    for old, new in pairs:
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def test_names_of_torchvision_and_of_backdoorbench() -> None:
    with torch.device("meta"):
        vit = TorchvisionNetwork("vit_b_16", 10, resize=224)
        densenet = TorchvisionNetwork("densenet161", 10)
        preact = PreActResNet18(10)
    own = vit.state_dict()
    for prefix in ("", "backbone."):
        assert vit.own_names(own if prefix else renamed(own, ("backbone.", ""))).keys() == own.keys()
    old = renamed(own, ("backbone.1.", ""), ("mlp.0.", "mlp.linear_1."), ("mlp.3.", "mlp.linear_2."))
    assert old.keys() == renamed(own, ("backbone.1.", "")).keys() ^ {
        name for name in {*old, *renamed(own, ("backbone.1.", ""))} if "mlp." in name
    }
    assert vit.own_names(old).keys() == own.keys()
    own = densenet.state_dict()
    old = renamed(own, ("backbone.", ""), *((f".{k}{n}.", f".{k}.{n}.") for k in ("norm", "conv") for n in (1, 2)))
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert densenet.own_names(old).keys() == own.keys()
    own = preact.state_dict()
    old = renamed(own, ("backbone.", ""), ("shortcut.", "shortcut.0."))
    assert "layer2.0.shortcut.0.weight" in old
    assert preact.own_names(old).keys() == own.keys()


def test_foreign_names_are_left_for_others_to_name() -> None:
    network = PreActResNet18(10, width=1)
    assert list(network.own_names({"encoder.weight": torch.zeros(1)})) == ["encoder.weight"]


def test_an_architecture_is_named_by_its_node() -> None:
    assert architecture({"_target_": "package.preact_resnet18.PreActResNet18", "width": 64}) == "preact_resnet18"
    assert architecture({"_target_": "package.torchvision.TorchvisionNetwork", "name": "resnet18"}) == "resnet18"
