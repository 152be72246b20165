"""CIFAR-10 from a tree and from torchvision's files."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from backdoor_bench.dataset import Augmentation
from backdoor_bench.dataset.cifar10 import CLASSES, Cifar10
from backdoor_bench.errors import DataError

Grow = Callable[..., Path]


def cifar10(data_dir: Path, **options: object) -> Cifar10:
    return Cifar10("cifar10", Augmentation(), data_dir, **options)


def official(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Torchvision's files in miniature, with checksums to match; returns the training pixels (20, 3, 32, 32)."""
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    rows = np.random.default_rng(0).integers(0, 256, (30, 3072), dtype=np.uint8)
    batches = [
        write(f"batch_{i}", {"data": rows[10 * i : 10 * i + 10], "labels": list(range(10))[:: (-1) ** i]})
        for i in range(3)
    ]
    monkeypatch.setattr(CIFAR10, "train_list", batches[:2])
    monkeypatch.setattr(CIFAR10, "test_list", batches[2:])
    meta = write("batches.meta", {"label_names": list(CLASSES)})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return rows[:20].reshape(20, 3, 32, 32)


@pytest.mark.parametrize(("suffix", "variant"), [("jpg", "cifar10 (jpeg)"), ("png", "cifar10")])
def test_from_a_tree(tmp_path: Path, grow: Grow, said: list[str], suffix: str, variant: str) -> None:
    grow(tmp_path / "cifar10", CLASSES, suffix)
    data = cifar10(tmp_path).load()
    assert data.manifest.variant == variant
    assert data.manifest.class_names == CLASSES
    assert data.manifest.train_counts == (3,) * 10
    assert data.train.labels.tolist() == sorted(data.train.labels.tolist())
    assert "holds 30 training and 20 test images, the published set 50,000 and 10,000" in said[0]


def test_an_added_image_is_noticed(tmp_path: Path, grow: Grow, said: list[str]) -> None:
    root = grow(tmp_path / "cifar10", CLASSES)
    before = cifar10(tmp_path).manifest()
    image = root / "train" / "cat" / "0000.png"
    (image.parent / "new.png").write_bytes(image.read_bytes())
    after = cifar10(tmp_path).manifest()
    assert (before.train_counts[3], after.train_counts[3]) == (3, 4)
    assert any("has changed since" in line for line in said)


def test_the_cache_outlives_the_tree(tmp_path: Path, grow: Grow) -> None:
    root = grow(tmp_path / "cifar10", CLASSES)
    expected = cifar10(tmp_path).load()
    root.rename(tmp_path / "elsewhere")
    found = cifar10(tmp_path)
    assert found.manifest() == expected.manifest
    assert torch.equal(found.load().test.images, expected.test.images)


def test_foreign_classes_are_an_error(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path / "cifar10", [name for name in CLASSES if name != "ship"] + ["boat"])
    with pytest.raises(DataError, match=r"missing: 'ship'; not of CIFAR-10: 'boat'"):
        cifar10(tmp_path).load()


def test_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    expected = official(tmp_path, monkeypatch)
    data = cifar10(tmp_path).load()
    assert torch.equal(data.train.images, torch.from_numpy(expected))
    assert data.train.images.is_contiguous()
    assert data.train.labels.tolist() == [*range(10), *reversed(range(10))]
    assert data.manifest.variant == "cifar10"


def test_a_tree_comes_first(tmp_path: Path, grow: Grow, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path, monkeypatch)
    grow(tmp_path / "cifar10", CLASSES, "jpg")
    assert cifar10(tmp_path).manifest().variant == "cifar10 (jpeg)"


def test_torchvision_files_that_fail_their_checksum_are_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official(tmp_path, monkeypatch)
    with (tmp_path / "cifar-10-batches-py" / "batch_1").open("ab") as file:
        file.write(b"\0")
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(DataError, match=r"cifar-10-batches-py .*incomplete, damaged or out of reach"):
        cifar10(tmp_path).load()


def test_not_there_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        cifar10(tmp_path).manifest()
    message = str(caught.value)
    for place in (".cache/cifar10.safetensors", "cifar10/{train,test}/CLASS/IMAGE", "cifar-10-batches-py"):
        assert str(tmp_path / place) in message
    assert "download=true" in message
    assert "tar -xf" in message
    assert list(tmp_path.iterdir()) == []


def test_a_download_happens_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(self: CIFAR10) -> None:
        asked.append(self.root)
        official(tmp_path, monkeypatch)

    monkeypatch.setattr(CIFAR10, "download", lambda self: asked or download(self))
    with pytest.raises(DataError):
        cifar10(tmp_path).load()
    assert asked == []
    assert len(cifar10(tmp_path, download=True).load().train) == 20
    assert asked == [str(tmp_path)]


def test_a_download_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: CIFAR10) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", offline)
    with pytest.raises(DataError, match="no route to host"):
        cifar10(tmp_path, download=True).load()
