"""STL-10 from a tree and from torchvision's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import STL10

from backdoor_bench.dataset import Augmentation
from backdoor_bench.dataset.stl10 import CLASSES, Stl10
from backdoor_bench.errors import DataError

Grow = Callable[..., Path]


def stl10(data_dir: Path, **options: Any) -> Stl10:
    return Stl10("stl10", Augmentation(), data_dir, **options)


def official(data_dir: Path, monkeypatch: pytest.MonkeyPatch, last_label: int = 10) -> np.ndarray:
    """Torchvision's files in miniature, with checksums to match; returns the training pixels (10, 3, 96, 96).

    The files count labels from 1 and write images column by column.
    """
    folder = data_dir / "stl10_binary"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 96, 96), dtype=np.uint8)
    columns = np.ascontiguousarray(pixels.transpose(0, 1, 3, 2))
    contents = {
        "train_X.bin": columns[:10],
        "train_y.bin": np.array([*range(1, 10), last_label], np.uint8),
        "unlabeled_X.bin": columns[:1],
        "test_X.bin": columns[10:],
        "test_y.bin": np.array([3, 1], np.uint8),
    }
    sums = []
    for name, content in contents.items():
        content.tofile(folder / name)
        sums.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    monkeypatch.setattr(STL10, "train_list", sums[:3])
    monkeypatch.setattr(STL10, "test_list", sums[3:])
    return pixels[:10]


def test_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    expected = official(tmp_path, monkeypatch)
    data = stl10(tmp_path).load()
    assert torch.equal(data.train.images, torch.from_numpy(expected))
    assert data.train.labels.tolist() == list(range(10))
    assert data.test.labels.tolist() == [2, 0]
    assert data.manifest.variant == "stl10"
    assert "10 training and 2 test images, the published set 5,000 and 8,000" in said[0]


def test_the_binary_form_and_a_lossless_tree_are_the_same(
    tmp_path: Path, grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(tmp_path / "tree" / "stl10", CLASSES, size=(96, 96))
    tree = stl10(tmp_path / "tree").load()
    folder = tmp_path / "binary" / "stl10_binary"
    folder.mkdir(parents=True)
    sums = []
    for split, part in (("train", tree.train), ("test", tree.test)):
        part.images.transpose(2, 3).contiguous().numpy().tofile(folder / f"{split}_X.bin")
        (part.labels + 1).byte().numpy().tofile(folder / f"{split}_y.bin")
        for name in (f"{split}_X.bin", f"{split}_y.bin"):
            sums.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    monkeypatch.setattr(STL10, "train_list", sums[:2])
    monkeypatch.setattr(STL10, "test_list", sums[2:])
    for size in (None, 32):
        ours, theirs = (stl10(tmp_path / where, image_size=size).manifest() for where in ("binary", "tree"))
        assert ours == theirs


def test_32_pixels_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    pixels = official(tmp_path, monkeypatch)
    data = stl10(tmp_path, image_size=32).load()
    assert data.manifest.variant == "stl10 (32 px)"
    assert said[0] == "stl10: 12 of 12 images resized to 32x32 (bilinear)"
    first = Image.fromarray(pixels[0].transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(data.train.images[0].permute(1, 2, 0), np.asarray(first))
    assert stl10(tmp_path).manifest().image_size == (96, 96)  # a cache of its own


@pytest.mark.parametrize(
    ("suffix", "side", "image_size", "variant"),
    [
        ("png", 96, None, "stl10"),
        ("jpg", 96, None, "stl10 (jpeg)"),
        ("jpg", 96, 32, "stl10 (32 px; jpeg)"),
        ("png", 32, None, "stl10 (32 px png)"),
        ("png", 32, 96, "stl10 (96 px from 32 px png)"),
        ("png", 96, [24, 48], "stl10 (48x24 px)"),
    ],
)
def test_the_variant_of_a_tree(
    tmp_path: Path, grow: Grow, said: list[str], suffix: str, side: int, image_size: Any, variant: str
) -> None:
    grow(tmp_path / "stl10", CLASSES, suffix, (side, side))
    data = stl10(tmp_path, image_size=image_size).load()
    assert data.manifest.variant == variant
    assert data.manifest.class_names == CLASSES
    foreign = [line for line in said if "are not of the published size, 96 px, but of 32 px" in line]
    assert len(foreign) == (side == 32)
    assert any("50 of 50 images resized" in line for line in said) == (image_size is not None)


def test_labels_out_of_range_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path, monkeypatch, last_label=0)
    with pytest.raises(DataError, match="expected one label of 1 to 10 for each of 10 images"):
        stl10(tmp_path).load()


def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path, monkeypatch)
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    with pytest.raises(DataError, match=r"stl10_binary .*incomplete.*Unpack stl10_binary.tar.gz there again"):
        stl10(tmp_path).load()


def test_foreign_classes_are_an_error(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path / "stl10", [*CLASSES[:9], "lorry"])
    with pytest.raises(DataError, match="missing: 'truck'; not of STL-10: 'lorry'"):
        stl10(tmp_path).load()
