"""Tiny-ImageNet from a tree, from the publisher's files, and fetched."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.datasets import utils

from backdoor_bench.dataset import Augmentation, tiny_imagenet
from backdoor_bench.dataset.tiny_imagenet import TinyImageNet
from backdoor_bench.errors import ConfigError, DataError

WNIDS = tuple(f"n{10_000_000 + 7 * i}" for i in range(200))


def tiny(data_dir: Path, **options: Any) -> TinyImageNet:
    return TinyImageNet("tiny_imagenet", Augmentation(), data_dir, **options)


def paint(path: Path, label: int, side: int) -> None:
    """One color, which a JPEG of constant blocks keeps to within a step or two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (label, 255 - label, 0)).save(path, "JPEG")


def sorted_tree(root: Path, side: int = 64, test: str = "test") -> Path:
    for label, wnid in enumerate(WNIDS):
        for split in ("train", test):
            paint(root / split / wnid / "images" / f"{wnid}_0.JPEG", label, side)
    return root


def official(root: Path) -> Path:
    """As the zip unpacks: labels of val in a table, images of test without labels."""
    for label, wnid in enumerate(WNIDS):
        paint(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", label, 64)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    rows = []
    for i, label in enumerate((3, 199, 3)):
        paint(root / "val" / "images" / f"val_{i}.JPEG", label, 64)
        rows.append(f"val_{i}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    paint(root / "test" / "images" / "test_0.JPEG", 50, 64)
    return root


def colors(images: torch.Tensor) -> list[int]:
    return images[:, 0, 5, 5].tolist()


@pytest.mark.parametrize("folder", ["tiny-imagenet-200", "tiny_imagenet"])
def test_from_the_publishers_files(tmp_path: Path, said: list[str], folder: str) -> None:
    official(tmp_path / folder)
    data = tiny(tmp_path).load()
    assert data.manifest.variant == "tiny_imagenet"  # JPEGs are what was published
    assert data.manifest.class_names == WNIDS
    assert data.train.labels.tolist() == list(range(200))
    assert colors(data.train.images) == pytest.approx(range(200), abs=2)
    assert data.test.labels.tolist() == [3, 3, 199]
    assert colors(data.test.images) == pytest.approx([3, 3, 199], abs=2)
    assert data.manifest.image_size == (64, 64)
    assert "200 training and 3 test images, the published set 100,000 and 10,000" in said[0]


def test_val_sorted_into_class_folders(tmp_path: Path) -> None:
    data = tiny(sorted_tree(tmp_path / "tiny-imagenet-200", test="val").parent).load()
    assert data.test.labels.tolist() == list(range(200))
    assert data.manifest.variant == "tiny_imagenet"


@pytest.mark.parametrize(
    ("side", "image_size", "variant", "held"),
    [
        (64, None, "tiny_imagenet", 64),
        (64, 32, "tiny_imagenet (32 px)", 32),
        (32, None, "tiny_imagenet (32 px jpeg)", 32),
        (32, 32, "tiny_imagenet (32 px jpeg)", 32),
        (32, 64, "tiny_imagenet (64 px from 32 px jpeg)", 64),
    ],
)
def test_a_tree_keeps_its_size_and_the_variant_says_so(
    tmp_path: Path, said: list[str], side: int, image_size: int | None, variant: str, held: int
) -> None:
    sorted_tree(tmp_path / "tiny_imagenet", side)
    data = tiny(tmp_path, image_size=image_size).load()
    assert data.manifest.variant == variant
    assert data.manifest.image_size == (held, held)
    foreign = f"not of the published size, 64 px, but of 32 px; results are of '{variant}'"
    assert any(foreign in line for line in said) == (side == 32)
    assert any(f"400 of 400 images resized to {held}x{held}" in line for line in said) == (held != side)


def test_the_tree_of_32_pixels_is_asked_for_by_its_size(tmp_path: Path) -> None:
    sorted_tree(tmp_path / "tiny_imagenet32", 32)
    with pytest.raises(DataError, match=r"tiny_imagenet32 is there: dataset.image_size=32 uses it"):
        tiny(tmp_path).load()
    assert tiny(tmp_path, image_size=32).manifest().variant == "tiny_imagenet (32 px jpeg)"


def test_hashes_are_stable(tmp_path: Path) -> None:
    """Decoded pixels are part of every victim's key: this changes only with ``version``."""
    root = tmp_path / "tiny_imagenet"
    for label, wnid in enumerate(WNIDS):
        for split in ("train", "test"):
            path = root / split / wnid / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (64, 64), (label, 0, 9)).save(path)
    pixels = torch.tensor([[label, 0, 9] for label in range(200)], dtype=torch.uint8)[:, :, None, None]
    digest = hashlib.sha256(repr((200, 3, 64, 64)).encode())
    digest.update(pixels.expand(-1, -1, 64, 64).contiguous().numpy().tobytes())
    digest.update(torch.arange(200).numpy().tobytes())
    assert tiny(tmp_path).manifest().train_sha256 == digest.hexdigest()
    assert digest.hexdigest().startswith("c521aba6d9d40f5c")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("val_0.JPEG\tn99999999\t0\t0\t1\t1\n", "expected FILE, a tab and one of the classes of train, got 'val_0"),
        ("val_0.JPEG\n", "expected FILE, a tab"),
        (f"val_9.JPEG\t{WNIDS[0]}\n", "1 of 201 image files cannot be read"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, table: str, message: str) -> None:
    (official(tmp_path / "tiny_imagenet") / "val" / "val_annotations.txt").write_text(table)
    with pytest.raises(DataError, match=message):
        tiny(tmp_path).load()


def test_other_classes_are_an_error(tmp_path: Path) -> None:
    root = sorted_tree(tmp_path / "tiny_imagenet")
    for split in ("train", "test"):
        (root / split / WNIDS[0]).rename(root / split / "goldfish")
    with pytest.raises(DataError, match=r"200 classes of Tiny-ImageNet .*not of Tiny-ImageNet: 'goldfish'"):
        tiny(tmp_path).load()
    for split in ("train", "test"):
        shutil.rmtree(root / split / "goldfish")
    with pytest.raises(DataError, match=r"got 199; not of Tiny-ImageNet: none"):
        tiny(tmp_path).load()


def test_incomplete_files(tmp_path: Path) -> None:
    shutil.rmtree(official(tmp_path / "tiny-imagenet-200") / "train")
    with pytest.raises(DataError, match=r"is incomplete: there is no .*train; unpack tiny-imagenet-200.zip again"):
        tiny(tmp_path).load()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zip, which a download 'fetches' by copying."""
    root, archive = official(tmp_path / "mirror" / "tiny-imagenet-200"), tmp_path / "there.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root.parent))
    monkeypatch.setattr(utils, "_urlretrieve", lambda url, name, *_, **__: shutil.copy(archive, name))
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


def test_a_download_is_checked_and_unpacked_whole(tmp_path: Path, mirror: Path) -> None:
    with pytest.raises(DataError, match="download=true"):
        tiny(tmp_path / "data").load()
    assert tiny(tmp_path / "data", download=True).load().test.labels.tolist() == [3, 3, 199]
    left = {path.name for path in (tmp_path / "data").iterdir()}
    assert left == {".cache", "tiny-imagenet-200", "tiny-imagenet-200.zip"}


def test_a_download_that_fails_its_checksum_is_not_unpacked(tmp_path: Path, mirror: Path) -> None:
    with mirror.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match=r"could not be fetched \(File not found or corrupted"):
        tiny(tmp_path / "data", download=True).load()
    assert not (tmp_path / "data" / "tiny-imagenet-200").exists()


@pytest.mark.parametrize("size", [0, "32", [8], 2.5])
def test_a_size_that_cannot_be(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.image_size="):
        tiny(tmp_path, image_size=size)
