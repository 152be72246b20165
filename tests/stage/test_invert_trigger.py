from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_bench.dataset import Augmentation, ImageSet
from backdoor_bench.errors import ConfigError
from backdoor_bench.numerics import Numerics
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.cost_controller import CostController
from backdoor_bench.stage.invert_trigger import (
    InvertTrigger,
    MaskTrigger,
    ScannedTriggers,
    Search,
    mad_outliers,
    overlay,
    squash,
)

CLASSES, TARGET = 6, 2


@pytest.fixture(scope="module")
def view(numerics: Numerics) -> DefenderView:
    """8x8 images: four dark pixels, then ten for each class, which are bright in its own images."""
    labels, index = torch.arange(36) % CLASSES, torch.arange(36)
    images = torch.randint(0, 20, (36, 3, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[index[:, None], :, 4 + 10 * labels[:, None] + torch.arange(10)] += 180
    data = ImageSet(images.view(36, 3, 8, 8), labels)
    return DefenderView(data[index[:24]], data[index[24:]], CLASSES, Augmentation(), numerics)


@pytest.fixture
def backdoored() -> nn.Module:
    """Linear: the brightness of a class's ten pixels is its logit; the first four pixels are the target's trigger."""
    weight = torch.zeros(CLASSES, 3, 64)
    for label in range(CLASSES):
        weight[label, :, 4 + 10 * label : 14 + 10 * label] = 1.0
    weight[TARGET, :, :4] = 5.0
    head = nn.Linear(192, CLASSES)
    head.weight.data, head.bias.data = weight.flatten(1), torch.zeros(CLASSES)
    return nn.Sequential(nn.Flatten(), head).eval()


def run(network: nn.Module, view: DefenderView, **options: Any) -> ScannedTriggers:
    return InvertTrigger(**{"epochs": 80, **options}).run(network, view)


def test_squash() -> None:
    assert squash(torch.tensor([0.0, 1.0, -1.0])).tolist() == pytest.approx([0.5, 0.8808, 0.1192], abs=1e-4)


def test_overlay_by_hand() -> None:
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    masks = torch.tensor([0.25, 1.0]).view(2, 1, 1, 1)
    patterns = torch.tensor([0.8, 0.5]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    triggered = overlay(images, masks, patterns)
    assert triggered.shape == (4, 3, 1, 1)
    assert triggered[:, 0].flatten().tolist() == pytest.approx([0.2, 0.95, 0.5, 0.5])
    alone = MaskTrigger(masks[0], patterns[0])(images)
    assert torch.equal(alone, triggered[:2])


def test_mad_averages_the_two_middle_values_of_an_even_number() -> None:
    # Median 10.5; deviations 9.5, 0.5, 0.5, 1.5, whose median is 1.
    index, flagged = mad_outliers([1.0, 10.0, 11.0, 12.0])
    assert index == pytest.approx(9.5 / 1.4826)
    assert flagged == [0]


def test_mad_flags_small_norms_only_smallest_first() -> None:
    assert mad_outliers([10.0, 11.0, 12.0, 100.0])[1] == []
    assert mad_outliers([50.0, 51.0, 5.0, 52.0, 1.0, 53.0, 54.0])[1] == [4, 2]


def test_mad_of_equal_norms_says_nothing() -> None:
    assert mad_outliers([3.0] * 6) == (None, [])


def test_finds_the_planted_trigger(backdoored: nn.Module, view: DefenderView) -> None:
    before = {name: value.clone() for name, value in backdoored.state_dict().items()}
    found = run(backdoored, view)
    assert found.label == TARGET
    assert found.flagged[0] == TARGET
    assert found.report["flagged"] is True
    assert found.report["anomaly_index"] > 2
    assert found.report["success_rate"] == 1.0
    mask = found.triggers[TARGET].mask.flatten()
    assert mask[:4].sum() > 0.9 * mask.sum()
    assert found.norms[TARGET] == pytest.approx(found.report[f"norm_{TARGET}"], abs=1e-3)
    assert found.trigger is found.triggers[TARGET]
    assert all(torch.equal(before[name], value) for name, value in backdoored.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in backdoored.parameters())


def test_grouping_classes_does_not_change_the_result(backdoored: nn.Module, view: DefenderView) -> None:
    options: dict[str, Any] = {"epochs": 8, "batch_size": 10}
    together, alone = run(backdoored, view, **options), run(backdoored, view, images_at_once=1, **options)
    assert together.report["steps"] == alone.report["steps"] == 24
    for label in range(CLASSES):
        assert torch.allclose(together.triggers[label].mask, alone.triggers[label].mask, atol=1e-4)
        assert torch.allclose(together.triggers[label].pattern, alone.triggers[label].pattern, atol=1e-4)


def test_augmented_and_repeated_and_fewer_images(backdoored: nn.Module, view: DefenderView) -> None:
    view = replace(view, augmentation=Augmentation(crop_padding=1))
    options: dict[str, Any] = {"epochs": 2, "max_images": 5, "min_steps": 3}
    plain, augmented = run(backdoored, view, **options), run(backdoored, view, augment=True, **options)
    assert plain.report["steps"] == 6
    assert not torch.equal(plain.triggers[0].mask, augmented.triggers[0].mask)


def test_without_validation_images_success_is_measured_on_training_ones(
    backdoored: nn.Module, view: DefenderView
) -> None:
    empty = replace(view, validation=view.validation[torch.zeros(12, dtype=torch.bool)])
    assert run(backdoored, empty, epochs=1).report["success_rate"] is not None


def search(patience: int = 3) -> Search:
    return Search(CostController(1.0, patience=1), threshold=0.98, patience=patience, image_size=(2, 2))


def test_the_smallest_mask_that_worked_is_kept() -> None:
    one = search()
    one.mask = torch.zeros(1, 2, 2)
    one.after_epoch(1.0, 3.0)
    for success, norm, value in ((0.97, 1.0, 1.0), (0.98, 3.5, 2.0)):  # failed; larger
        one.mask = torch.full((1, 2, 2), value)
        one.after_epoch(success, norm)
    assert one.result().mask.unique().item() == 0.5
    assert one.best == 3.0


def test_a_mask_that_never_worked_is_the_last() -> None:
    one = search()
    one.after_epoch(0.5, 3.0)
    one.mask = torch.zeros(1, 2, 2)
    one.after_epoch(0.5, 2.0)
    assert one.kept is None
    assert one.result().mask.unique().item() == 0.5


def test_stops_without_progress_once_the_cost_went_both_ways() -> None:
    one = search(patience=3)
    assert not one.after_epoch(1.0, 3.0)  # the first best is progress; the cost goes up
    assert [one.after_epoch(1.0, norm) for norm in (2.98, 2.97, 2.96, 2.95)] == [False] * 4  # less than 1 % each
    assert not one.after_epoch(0.0, 2.9)  # the cost goes down after this decision
    assert one.after_epoch(1.0, 2.94)
    again = search(patience=3)
    again.after_epoch(0.0, 9.0)
    again.after_epoch(1.0, 3.0)
    assert [again.after_epoch(1.0, 3.0), again.after_epoch(1.0, 2.0)] == [False, False]  # a third less: starts anew
    assert [again.after_epoch(1.0, 2.0) for _ in range(3)] == [False, False, True]


def test_options_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="max_images=0"):
        InvertTrigger(epochs=1, max_images=0)
