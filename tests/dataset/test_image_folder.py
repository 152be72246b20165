"""Your own images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from backdoor_bench.dataset import Augmentation
from backdoor_bench.dataset.image_folder import ImageFolder
from backdoor_bench.errors import ConfigError, DataError

Grow = Callable[..., Path]


def folder(tmp_path: Path, root: Path | None = None, **options: object) -> ImageFolder:
    return ImageFolder("image_folder", Augmentation(), root or tmp_path / "own", data_dir=tmp_path / "data", **options)


def flat(root: Path, counts: dict[str, int], side: int = 8) -> Path:
    """ROOT/CLASS/IMAGE, each image of a colour of its own."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (side, side), (label, i, 0)).save(root / name / f"{i}.png")
    return root


def test_train_and_test_folders(tmp_path: Path, grow: Grow, said: list[str]) -> None:
    grow(tmp_path / "own", ["cat", "dog", "eel"], size=(12, 20))
    data = folder(tmp_path).load()
    assert data.num_classes == 3
    assert data.manifest.class_names == ("cat", "dog", "eel")
    assert data.manifest.image_size == (12, 20)
    assert data.manifest.variant == "image_folder (own, 20x12)"
    assert data.manifest.train_counts == (3, 3, 3)
    assert data.manifest.test_counts == (2, 2, 2)


def test_a_seeded_share_of_each_class_is_the_test_set(tmp_path: Path) -> None:
    flat(tmp_path / "own", {"a": 10, "b": 2, "c": 13})
    data = folder(tmp_path).load()
    assert data.manifest.test_counts == (2, 1, 3)
    assert data.manifest.train_counts == (8, 1, 10)
    seen = [tuple(image[:2, 0, 0].tolist()) for image in torch.cat([data.train.images, data.test.images])]
    assert sorted(seen) == [(label, i) for label, count in enumerate((10, 2, 13)) for i in range(count)]
    again = ImageFolder("image_folder", Augmentation(), tmp_path / "own", data_dir=tmp_path / "another").load()
    assert again.manifest == data.manifest
    assert folder(tmp_path, test_share=0.5).manifest().test_counts == (5, 1, 7)


def test_a_class_too_small_to_share(tmp_path: Path) -> None:
    flat(tmp_path / "own", {"a": 10, "b": 1})
    with pytest.raises(DataError, match="class 'b' has one image"):
        folder(tmp_path).load()


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    flat(tmp_path / "own", {"a": 10})
    with pytest.raises(DataError, match="has one class, 'a'"):
        folder(tmp_path).load()


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (8, 8), 7 * i).save(tmp_path / "own" / name / f"{i}.png")
    images = folder(tmp_path).load().train.images
    assert images.shape == (8, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])


def test_sizes_that_differ(tmp_path: Path, said: list[str]) -> None:
    flat(tmp_path / "own", {"a": 5, "b": 5})
    Image.new("RGB", (16, 9)).save(tmp_path / "own" / "b" / "0.png")
    data = folder(tmp_path).load()
    assert data.manifest.variant == "image_folder (own, 8x8)"
    assert said[0].startswith("image_folder: images have 2 sizes, 8x8 to 16x9; all become 8x8, as most have")
    assert said[1] == "image_folder: 1 of 10 images resized to 8x8 (bilinear)"
    said.clear()
    assert folder(tmp_path, image_size=8).manifest().train_sha256 == data.manifest.train_sha256
    assert said[0] == "image_folder: 1 of 10 images resized to 8x8 (bilinear)"
    assert folder(tmp_path, image_size=[6, 4]).manifest().image_size == (6, 4)


def test_each_size_and_folder_has_its_own_cache(tmp_path: Path, said: list[str]) -> None:
    flat(tmp_path / "own", {"a": 5, "b": 5})
    flat(tmp_path / "more" / "own", {"a": 6, "b": 6})
    for _ in range(2):
        assert folder(tmp_path).manifest().image_size == (8, 8)
        assert folder(tmp_path, image_size=4).manifest().image_size == (4, 4)
        assert folder(tmp_path, tmp_path / "more" / "own").manifest().train_counts == (5, 5)
    assert sum("ready in" in line for line in said) == 3
    assert len(list((tmp_path / "data" / ".cache").glob("image_folder-own-*.safetensors"))) == 3


def added(root: Path) -> None:
    Image.new("RGB", (8, 8)).save(root / "a" / "new.png")


def removed(root: Path) -> None:
    (root / "a" / "0.png").unlink()


def renamed(root: Path) -> None:
    (root / "a" / "0.png").rename(root / "a" / "zero.png")


def rewritten(root: Path) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(root / "a" / "0.png")


def touched(root: Path) -> None:
    os.utime(root / "a" / "0.png")


@pytest.mark.parametrize("change", [added, removed, renamed, rewritten, touched])
def test_a_changed_tree_is_noticed(tmp_path: Path, said: list[str], change: Callable[[Path], None]) -> None:
    root = flat(tmp_path / "own", {"a": 5, "b": 5})
    folder(tmp_path).load()
    folder(tmp_path).load()
    assert len(said) == 1
    change(root)
    folder(tmp_path).load()
    assert f"{root} has changed since" in said[1]
    said.clear()
    folder(tmp_path).manifest()
    assert said == []


def test_a_tree_that_broke_since_is_an_error(tmp_path: Path) -> None:
    root = flat(tmp_path / "own", {"a": 5, "b": 5})
    folder(tmp_path).load()
    (root / "c").mkdir()
    with pytest.raises(DataError, match="class folder 'c' holds no images"):
        folder(tmp_path).manifest()


def test_no_root() -> None:
    with pytest.raises(ConfigError, match=r"give dataset.root=PATH"):
        ImageFolder("image_folder", Augmentation(), None)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.root=.*own is no folder.*ROOT/train/CLASS/IMAGE"):
        folder(tmp_path).load()


@pytest.mark.parametrize("size", [0, -3, "32", [8], [8, 0], True, 2.5])
def test_a_size_that_cannot_be(tmp_path: Path, size: object) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.image_size="):
        folder(tmp_path, image_size=size)


@pytest.mark.parametrize("share", [0, 1, -0.5, 20])
def test_a_share_that_cannot_be(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match=f"test_share={share}"):
        folder(tmp_path, test_share=share)
