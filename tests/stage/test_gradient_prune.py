from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from backdoor_bench.attack.base import Trigger
from backdoor_bench.dataset import ImageSet
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.numerics import Numerics
from backdoor_bench.stage import DefenderView, InvertedTrigger
from backdoor_bench.stage.gradient_prune import (
    Filters,
    GradientPrune,
    Triggered,
    filter_scores,
    unlearning_gradients,
    unlearning_loss,
)
from backdoor_bench.stage.known_trigger import KnownTrigger


def vit() -> VisionTransformer:
    """One block, eight features, sixteen patches."""
    return VisionTransformer(32, 8, 1, 2, 8, 16, num_classes=4)


class White(Trigger):
    """The first pixel white."""

    def paint(self, images: Tensor) -> Tensor:
        images = images.clone()
        images[:, :, 0, 0] = 1.0
        return images


TRIGGER = InvertedTrigger(White(), None)


@pytest.fixture
def view(defender_view: DefenderView) -> DefenderView:
    """Class c is bright in channel c; no pixel is white."""
    labels = torch.arange(30) % 3
    images = torch.randint(0, 50, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[torch.arange(30), labels] += 150
    data, index = ImageSet(images, labels), torch.arange(30)
    return replace(defender_view, train=data[index[:21]], validation=data[index[21:]], num_classes=3)


@pytest.fixture
def backdoored() -> nn.Sequential:
    """Filters 0 to 2 see a colour each, filter 3 white; white means class 0."""
    conv = nn.Conv2d(3, 4, 1)
    conv.weight.data = torch.cat([torch.eye(3), torch.ones(1, 3)]).view(4, 3, 1, 1)
    conv.bias.data = torch.tensor([0.0, 0, 0, -2])
    norm = nn.BatchNorm2d(4)
    head = nn.Linear(4, 3)
    head.weight.data = torch.tensor([[5.0, 0, 0, 640], [0, 5, 0, 0], [0, 0, 5, 0]])
    head.bias.data.zero_()
    return nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def test_scores_by_hand() -> None:
    first = torch.tensor([[1.0, -3.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    second = torch.tensor([-8.0]).view(1, 1, 1, 1)
    assert filter_scores([first, second]).tolist() == [2.0, 0.5, 8.0]


@pytest.mark.parametrize("batch_size", [48, 20])
def test_gradients_are_those_of_the_whole_batch(
    network: nn.Module, image_set: ImageSet, numerics: Numerics, batch_size: int
) -> None:
    data = Triggered(image_set.images / 255, image_set.labels)
    weights = Filters(network).weights
    before = {name: value.clone() for name, value in network.state_dict().items()}
    loss = F.cross_entropy(network(data.images), data.labels)
    expected = torch.autograd.grad(loss, weights)
    found = unlearning_gradients(network, data, weights, numerics, batch_size)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert unlearning_loss(network, data, numerics, batch_size) == pytest.approx(loss.item(), abs=1e-5)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_reference_mode_lets_batchnorm_learn_from_the_first_batch(
    network: nn.Module, image_set: ImageSet, numerics: Numerics
) -> None:
    data = Triggered(image_set.images / 255, image_set.labels)
    unlearning_gradients(network, data, Filters(network).weights, numerics, 16, "reference")
    assert network.get_submodule("backbone.layer1.0.bn1").num_batches_tracked.item() == 1
    assert not network.training


def test_a_filter_is_its_weights_its_bias_and_the_batchnorm_behind_it(network: nn.Module) -> None:
    filters = Filters(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    numbers = {name: number for number, name in enumerate(filters.layers)}
    start = sum(len(weight) for weight in filters.weights[: numbers["backbone.layer2.0.conv1.weight"]])
    assert filters.locate(start + 1) == (numbers["backbone.layer2.0.conv1.weight"], 1)
    filters.zero(start + 1)
    mask = filters.mask([start + 1])
    assert set(mask) == {
        "backbone.layer2.0.conv1.weight",
        "backbone.layer2.0.bn2.weight",
        "backbone.layer2.0.bn2.bias",
    }
    for name, value in network.state_dict().items():
        entries = mask.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~entries], before[name][~entries])
        assert not value[entries].any()


def test_a_convolution_behind_a_sum_takes_no_batchnorm_with_it(network: nn.Module) -> None:
    filters = Filters(network)
    last = len(filters) - 1
    assert list(filters.layers)[-1] == "backbone.layer4.1.conv2.weight"
    assert list(filters.mask([last])) == ["backbone.layer4.1.conv2.weight"]


def test_prunes_the_planted_filter_and_nothing_else(backdoored: nn.Module, view: DefenderView) -> None:
    before = {name: value.clone() for name, value in backdoored.state_dict().items()}
    mask = GradientPrune().run(backdoored, view, TRIGGER)
    assert mask.report["pruned_filters"] == 1
    assert mask.report["accuracy_before"] == mask.report["accuracy"] == 1.0
    assert mask.report["loss"] < 1 < mask.report["loss_before"]
    assert set(mask.pruned) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for name, value in backdoored.state_dict().items():
        entries = mask.pruned.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~entries], before[name][~entries])
        assert not value[entries].any()
        if name in mask.pruned:
            assert entries.flatten(1).all(1).nonzero().flatten().tolist() == [3] if entries.ndim > 1 else entries[3]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in backdoored.parameters())


def test_no_filter_is_pruned_twice(backdoored: nn.Module, view: DefenderView, monkeypatch: pytest.MonkeyPatch) -> None:
    zeroed: list[int] = []
    zero = Filters.zero
    monkeypatch.setattr(Filters, "zero", lambda self, number: (zeroed.append(number), zero(self, number)))
    # Validation labels that are always wrong: the accuracy cannot fall, so every filter goes.
    wrong = replace(view, validation=ImageSet(view.validation.images, (view.validation.labels + 1) % 3))
    mask = GradientPrune(alpha=1.0, patience=99).run(backdoored, wrong, TRIGGER)
    assert sorted(zeroed) == [0, 1, 2, 3]
    assert mask.report["rounds"] == 4


def test_stops_at_the_accuracy_drop_and_keeps_the_network_before_it(backdoored: nn.Module, view: DefenderView) -> None:
    mask = GradientPrune(patience=99).run(backdoored, view, TRIGGER)
    assert mask.report["rounds"] == 2  # filter 3, then one that a class needs
    assert mask.report["pruned_filters"] == 1


def test_one_wrong_of_ten_images_is_not_the_end(backdoored: nn.Module, view: DefenderView) -> None:
    # A class-0 image that looks like class 1 and is right only through the backdoor's filter: 10 of 10, then 9.
    odd = view.validation.images[view.validation.labels == 1][:1].clone()
    odd[:, :, 0, 0] = 255
    images = torch.cat([view.validation.images, odd])
    ten = replace(view, validation=ImageSet(images, torch.cat([view.validation.labels, torch.tensor([0])])))
    mask = GradientPrune(alpha=0.1).run(backdoored, ten, TRIGGER)
    assert mask.report["accuracy_before"] == 1.0
    assert mask.report["accuracy"] == 0.9
    assert mask.report["pruned_filters"] == 1


def test_patience(backdoored: nn.Module, view: DefenderView) -> None:
    mask = GradientPrune(alpha=1.0, patience=1).run(backdoored, view, TRIGGER)
    assert mask.report["rounds"] == 2


def test_nothing_helps_nothing_is_pruned(backdoored: nn.Module, view: DefenderView) -> None:
    before = {name: value.clone() for name, value in backdoored.state_dict().items()}
    backdoored[-1].weight.data[0, 3] = before["5.weight"][0, 3] = 0.0  # no backdoor
    mask = GradientPrune().run(backdoored, view, TRIGGER)
    assert mask.count == mask.report["pruned_filters"] == 0
    assert all(torch.equal(before[name], value) for name, value in backdoored.state_dict().items())


def test_several_filters_a_round_a_limit_and_excluded_names(backdoored: nn.Module, view: DefenderView) -> None:
    mask = GradientPrune(alpha=1.0, filters_per_round=3, max_rounds=1).run(backdoored, view, TRIGGER)
    assert mask.report["rounds"] == 1
    with pytest.raises(
        IncompatibleError, match=r"two conv layers or more, and Sequential has 0 \(none\) with exclude=\['0'\]"
    ):
        GradientPrune(exclude=["0"]).check(backdoored, view)


def test_a_depthwise_filter_is_a_channel() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    network.append(nn.Conv2d(4, 6, 1, groups=2))
    filters = Filters(network)
    assert len(filters) == 4 + 4 + 6
    images = torch.rand(2, 3, 8, 8)
    filters.zero(4 + 1)
    maps = network.eval()[:4](images)
    assert not maps[:, 1].any()
    assert maps[:, [0, 2, 3]].flatten(2).any(2).all()
    assert {name: tuple(entries.shape) for name, entries in filters.mask([5]).items()} == {
        "2.weight": (4, 1, 3, 3),
        "2.bias": (4,),
        "3.weight": (4,),
        "3.bias": (4,),
    }


def test_rows_of_a_transformer_where_they_are_asked_for(defender_view: DefenderView) -> None:
    network = vit().eval()
    with pytest.raises(IncompatibleError, match=r"VisionTransformer has 1 \(conv_proj\.weight\).* layer_type=linear"):
        GradientPrune().check(network, defender_view)
    stage = GradientPrune(layer_type="linear", max_rounds=1)
    stage.check(network, defender_view)
    filters = Filters(network, layer_type="linear")
    assert len(filters.layers) == 4  # in- and out-projection, two layers of the MLP; not the classifier
    mask = stage.run(network, defender_view, TRIGGER)
    assert mask.report["rounds"] == 1
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert list(filters.mask([0])) == [f"{attention}.in_proj_weight", f"{attention}.in_proj_bias"]


def test_options_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="layer_type=row"):
        GradientPrune(layer_type="row")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="alpha=10"):
        GradientPrune(alpha=10)
    with pytest.raises(ConfigError, match="bn_mode=train"):
        GradientPrune(bn_mode="train")  # type: ignore[arg-type]


def test_the_oracle_stage(network: nn.Module, defender_view: DefenderView) -> None:
    stage: Any = KnownTrigger()
    with pytest.raises(IncompatibleError, match=r"assumes: \[trigger\]"):
        stage.check(network, defender_view)
    trigger = White()
    view = replace(defender_view, known_trigger=trigger)
    stage.check(network, view)
    handed = stage.run(network, view)
    assert handed.trigger is trigger
    assert handed.label is None
