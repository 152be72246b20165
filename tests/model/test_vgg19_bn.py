"""VGG19-BN has the published sizes. On the meta device: 140 million weights need no memory to be counted."""

from __future__ import annotations

import pytest
import torch

from backdoor_bench.model import anatomy
from backdoor_bench.model.vgg19_bn import VGG19BN


@pytest.fixture(scope="module")
def network() -> VGG19BN:
    with torch.device("meta"):
        return VGG19BN(num_classes=10)


def test_parameters(network: VGG19BN) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == 139_622_218


def test_batch_norms(network: VGG19BN) -> None:
    norms = anatomy.batch_norms(network)
    assert len(norms) == 16
    assert sum(norm.num_features for norm in norms.values()) == 5_504


def test_every_batch_norm_follows_its_convolution(network: VGG19BN) -> None:
    pairs = anatomy.conv_bn_pairs(network)
    assert len(pairs) == 16
    assert all(bn == f"backbone.features.{int(conv.split('.')[-1]) + 1}" for bn, conv in pairs.items())


def test_the_last_map_is_1_by_1_and_pooled_to_7_by_7(network: VGG19BN) -> None:
    images = torch.empty(2, 3, 32, 32, device="meta")
    assert anatomy.capture(network, network.backbone.avgpool, images).shape == (2, 512, 1, 1)
    assert anatomy.capture(network, network.backbone.avgpool, images, "output").shape == (2, 512, 7, 7)
    assert network(images).shape == (2, 10)


def test_the_head_is_the_first_linear_behind_the_convolutions(network: VGG19BN) -> None:
    name, layer = anatomy.head(network)
    assert name == "backbone.classifier.0"
    assert layer.in_features == 512 * 7 * 7
