"""What a defender has: drawn numbers of its own, and nothing of the attacker's."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from backdoor_bench.dataset import Augmentation, Data, Dataset, ImageSet, Manifest
from backdoor_bench.dataset.base import describe
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.stage import DefenderView


def draw(view: DefenderView, name: str = "x") -> torch.Tensor:
    return torch.rand(4, generator=view.generator(name))


def test_every_stage_purpose_and_repetition_has_its_own_numbers(defender_view: DefenderView) -> None:
    first = draw(defender_view.for_stage("mask"))
    assert torch.equal(first, draw(defender_view.for_stage("mask")))
    assert not torch.equal(first, draw(defender_view.for_stage("prune")))
    assert not torch.equal(first, draw(defender_view.for_stage("mask"), "y"))
    assert not torch.equal(first, draw(replace(defender_view, repetition=1).for_stage("mask")))


class Small(Dataset):
    """Two images of 8x6, black and white."""

    def __init__(self) -> None:
        super().__init__("small", Augmentation())

    def manifest(self) -> Manifest:
        return self.load().manifest

    def load(self) -> Data:
        images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 6)
        data = ImageSet(images, torch.tensor([1, 0]))
        return Data(data, data, describe("small", "", ("a", "b"), data, data), self.augmentation)


def test_images_of_another_data_set_have_the_size_of_this_one(defender_view: DefenderView) -> None:
    found = defender_view.outside(Small())
    assert found.images.shape == (2, 3, 32, 32)
    assert [image.unique().tolist() for image in found.images] == [[0], [255]]
    assert found.labels.tolist() == [1, 0]


def test_two_images_to_look_at_a_network_with(defender_view: DefenderView) -> None:
    nothing = replace(defender_view, train=defender_view.train[torch.arange(0)])
    for view in (defender_view, nothing):
        assert view.example.shape == (2, 3, 32, 32)
        assert view.example.unique().tolist() == pytest.approx([127 / 255])


def test_it_has_no_room_for_what_a_defender_does_not_have(defender_view: DefenderView) -> None:
    names = {field.name for field in fields(defender_view)}
    assert names == {
        "train", "validation", "num_classes", "augmentation", "numerics", "repetition", "clean_ratio", "stage",
        "known_trigger", "known_target",
    }  # fmt: skip
    assert defender_view.known_trigger is None
    assert defender_view.known_target is None
    with pytest.raises(IncompatibleError, match=r"stage 'generate' uses the attacker's target label.*\[target_label\]"):
        _ = defender_view.for_stage("generate").target_label
    assert replace(defender_view, known_target=0).target_label == 0
    with pytest.raises(FrozenInstanceError):
        defender_view.stage = "other"  # type: ignore[misc]
