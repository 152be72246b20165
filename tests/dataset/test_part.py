"""A part of a data set: which images it holds, what it is called, and that it is cut once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backdoor_bench import config as configuration
from backdoor_bench.dataset import Augmentation, Data, Dataset, ImageSet
from backdoor_bench.dataset.base import describe
from backdoor_bench.dataset.cache import CachedDataset, Decoded
from backdoor_bench.dataset.part import Part
from backdoor_bench.errors import ConfigError, DataError

Compose = Callable[..., dict[str, Any]]


def numbered(count: int, classes: int = 2) -> ImageSet:
    """Image i is i everywhere, and of class i mod ``classes``."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return ImageSet(pixels, torch.arange(count) % classes)


class Toy(CachedDataset):
    decoded = 0
    version = 1

    def locate(self) -> Callable[[], Decoded]:
        return self.decode

    def decode(self) -> Decoded:
        type(self).decoded += 1
        return Decoded(numbered(90), numbered(20), ("a", "b"), "toy (random)", "nowhere")


def whole(train: ImageSet, test: ImageSet, variant: str = "toy") -> Data:
    return Data(train, test, describe("toy", variant, ("a", "b", "c"), train, test), Augmentation())


def members(data: ImageSet) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def test_by_hand_in_proportion_to_the_classes_and_in_their_order() -> None:
    train = ImageSet(numbered(12).images, torch.tensor([0] * 8 + [1] * 2 + [2] * 2))
    part = Part(6).of(whole(train, numbered(6, 3)))
    assert part.manifest.train_counts == (4, 1, 1)
    assert part.manifest.test_counts == (2, 2, 2)
    assert members(part.train) == sorted(members(part.train))
    assert [train.labels[image] for image in members(part.train)] == part.train.labels.tolist()
    assert part.manifest.variant == "toy (6 + 6 images)"
    assert part.manifest.train_sha256 != whole(train, numbered(6, 3)).manifest.train_sha256


def test_a_smaller_part_lies_within_a_larger_one_and_is_always_the_same() -> None:
    data = whole(numbered(90, 3), numbered(30, 3), "toy (jpeg)")
    small, large = Part(30, 9).of(data), Part(60, 9).of(data)
    assert set(members(small.train)) < set(members(large.train))
    assert members(small.test) == members(large.test)
    assert Part(30, 9).of(data).manifest == small.manifest
    assert members(small.train) != list(range(30))
    assert small.manifest.variant == "toy (jpeg; 30 + 9 images)"


def test_as_many_as_there_are_is_the_whole() -> None:
    data = whole(numbered(9, 3), numbered(9, 3))
    assert Part(9, 100).of(data) is data


@pytest.mark.parametrize("option", ["max_train", "max_test"])
def test_what_cannot_be_is_refused(option: str) -> None:
    data = whole(numbered(9, 3), numbered(9, 3))
    with pytest.raises(DataError, match=f"dataset.{option}=2 of 9 images leaves class 2 of toy without one"):
        Part(**{option: 2}).of(data)
    for value in (0, -1, 2.5, True, "all"):
        with pytest.raises(ConfigError, match=rf"dataset.{option}={value}: expected a whole number"):
            Part(**{option: value})


def test_cut_once_out_of_the_wholes_cache(tmp_path: Path, said: list[str]) -> None:
    Toy.decoded = 0

    def toy(**limits: int) -> Toy:
        return Toy("toy", Augmentation(), tmp_path, **limits)

    part = toy(max_train=30, max_test=10).load()
    assert Toy.decoded == 1
    assert (len(part.train), len(part.test)) == (30, 10)
    assert toy().load().manifest.variant == "toy (random)"
    assert toy(max_train=60).manifest().train_counts == (30, 30)
    assert toy(max_train=30, max_test=10).manifest() == part.manifest
    assert Toy.decoded == 1
    caches = sorted(path.stem for path in (tmp_path / ".cache").glob("*.safetensors"))
    assert caches == ["toy", "toy-30-10", "toy-60-all"]
    assert len(said) == 3


@pytest.mark.parametrize("name", sorted(path.stem for path in (configuration.directory() / "dataset").glob("*.yaml")))
def test_every_data_set_has_the_options(tmp_path: Path, compose: Compose, name: str) -> None:
    root = [f"dataset.root={tmp_path}"] if name in ("image_folder", "npz") else []
    config = compose(f"dataset={name}", *root, f"data_dir={tmp_path}", "dataset.max_train=50", "dataset.max_test=7")
    made = configuration.make(config["dataset"])
    assert isinstance(made, Dataset)
    assert made.part == Part(50, 7)  # type: ignore[attr-defined]


def test_digits(compose: Compose) -> None:
    found = configuration.make(compose("dataset=digits", "dataset.max_train=100")["dataset"]).load()
    assert (len(found.train), found.manifest.variant) == (100, "digits (scikit-learn; 100 + 355 images)")
    assert min(found.manifest.train_counts) >= 9
