"""GTSRB from a tree and from torchvision's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import GTSRB

from backdoor_bench.dataset import Augmentation
from backdoor_bench.dataset.gtsrb import CLASSES, Gtsrb
from backdoor_bench.errors import DataError

Grow = Callable[..., Path]


def gtsrb(data_dir: Path, **options: object) -> Gtsrb:
    return Gtsrb("gtsrb", Augmentation(), data_dir, **options)


def official(data_dir: Path, training: str = "Training") -> None:
    """As torchvision unpacks it: one training image a class, two test images whose labels are in a table."""
    root = data_dir / "gtsrb" / "GTSRB"
    for label in CLASSES:
        folder = root / training / label
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 50), (int(label), 0, 0)).save(folder / "00000_00000.ppm")
        (folder / f"GT-{label}.csv").write_text("Filename;Width\n")
    test = root / "Final_Test" / "Images"
    test.mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (33, 33), (100 + i, 0, 0)).save(test / f"{i:05d}.ppm")
    table = "Filename;Width;Height;Roi.X1;ClassId\n00000.ppm;33;33;5;16\n00001.ppm;33;33;5;1\n"
    (root.parent / "GT-final_test.csv").write_text(table)


@pytest.mark.parametrize(
    ("suffix", "size", "variant"),
    [
        ("webp", (32, 32), "gtsrb (32 px webp)"),
        ("png", (32, 32), "gtsrb (32 px png)"),
        ("png", (30, 40), "gtsrb"),
        ("jpg", (30, 40), "gtsrb (jpeg)"),
    ],
)
def test_from_a_tree(
    tmp_path: Path, grow: Grow, said: list[str], suffix: str, size: tuple[int, int], variant: str
) -> None:
    grow(tmp_path / "gtsrb", CLASSES, suffix, size)
    data = gtsrb(tmp_path).load()
    assert data.train.images.shape == (129, 3, 32, 32)
    assert data.manifest.variant == variant
    assert data.manifest.test_counts == (2,) * 43
    assert any("215 of 215 images resized to 32x32" in line for line in said) == (size != (32, 32))


def test_labels_are_the_numbers_of_the_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in range(43):
            folder = tmp_path / "gtsrb" / split / str(label)
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (label, 0, 0)).save(folder / "0.png")
    data = gtsrb(tmp_path).load()
    assert data.train.labels.tolist() == list(range(43))
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(43))
    assert data.manifest.class_names == CLASSES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (CLASSES[:-1], "missing: 00042; not of GTSRB: none"),
        ((*CLASSES, "00043"), "missing: none; not of GTSRB: 00043"),
        ((*CLASSES[:-1], "stop"), "missing: 00042; not of GTSRB: stop"),
        ((*CLASSES, "7"), "43 classes of GTSRB"),
    ],
)
def test_other_classes_are_an_error(tmp_path: Path, grow: Grow, names: tuple[str, ...], message: str) -> None:
    grow(tmp_path / "gtsrb", names)
    with pytest.raises(DataError, match=message):
        gtsrb(tmp_path).load()


@pytest.mark.parametrize(
    ("training", "variant"), [("Training", "gtsrb (2011 competition)"), ("Final_Training/Images", "gtsrb")]
)
def test_from_torchvision(tmp_path: Path, said: list[str], training: str, variant: str) -> None:
    official(tmp_path, training)
    data = gtsrb(tmp_path).load()
    assert data.train.labels.tolist() == list(range(43))
    assert data.train.images[:, 0, 5, 5].tolist() == list(range(43))
    assert data.test.labels.tolist() == [16, 1]
    assert data.test.images[:, 0, 5, 5].tolist() == [100, 101]
    assert data.manifest.variant == variant
    assert any("43 training and 2 test images, the published set 39,209 and 12,630" in line for line in said)


def test_torchvision_agrees(tmp_path: Path, said: list[str]) -> None:
    official(tmp_path)
    data = gtsrb(tmp_path).load()
    for ours, split in ((data.train, "train"), (data.test, "test")):
        theirs = GTSRB(str(tmp_path), split=split)
        assert ours.labels.tolist() == [label for _, label in theirs]
        resized = [np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) for image, _ in theirs]
        assert torch.equal(ours.images, torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2))


def test_incomplete_torchvision_files(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "gtsrb" / "GT-final_test.csv").unlink()
    with pytest.raises(DataError, match=r"incomplete: there is no .*GT-final_test.csv.*download=true"):
        gtsrb(tmp_path).load()


def test_not_there_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        gtsrb(tmp_path).manifest()
    message = str(caught.value)
    for place in (".cache/gtsrb.safetensors", "gtsrb/{train,test}/CLASS/IMAGE", "gtsrb/GTSRB"):
        assert str(tmp_path / place) in message
    assert "download=true" in message


def test_a_download_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: GTSRB) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(GTSRB, "download", offline)
    with pytest.raises(DataError, match="could not fetch the train images: no route to host"):
        gtsrb(tmp_path, download=True).load()
