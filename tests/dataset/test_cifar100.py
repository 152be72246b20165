"""CIFAR-100 from a tree and from torchvision's files. What it shares with CIFAR-10 is tested there."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from backdoor_bench.dataset import Augmentation
from backdoor_bench.dataset.cifar100 import CLASSES, Cifar100
from backdoor_bench.errors import DataError


def cifar100(data_dir: Path, **options: object) -> Cifar100:
    return Cifar100("cifar100", Augmentation(), data_dir, **options)


def official(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Torchvision's files in miniature, with checksums to match; returns the training pixels (100, 3, 32, 32)."""
    folder = data_dir / "cifar-100-python"
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    rows = np.random.default_rng(0).integers(0, 256, (102, 3072), dtype=np.uint8)
    labels = list(reversed(range(100)))
    coarse = [0] * 100  # never to be taken for the labels
    train = write("train", {"data": rows[:100], "fine_labels": labels, "coarse_labels": coarse})
    test = write("test", {"data": rows[100:], "fine_labels": [7, 99], "coarse_labels": coarse[:2]})
    meta = write("meta", {"fine_label_names": list(CLASSES)})
    monkeypatch.setattr(CIFAR100, "train_list", [train])
    monkeypatch.setattr(CIFAR100, "test_list", [test])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": meta[0], "key": "fine_label_names", "md5": meta[1]})
    return rows[:100].reshape(100, 3, 32, 32)


def test_a_hundred_classes_in_official_order() -> None:
    """The official labels are the fine names in alphabetical order; a few are known by heart."""
    assert len(set(CLASSES)) == 100
    assert list(CLASSES) == sorted(CLASSES)
    known = {0: "apple", 19: "cattle", 29: "dinosaur", 49: "mountain", 71: "sea", 87: "television", 99: "worm"}
    assert {label: CLASSES[label] for label in known} == known


def test_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    expected = official(tmp_path, monkeypatch)
    data = cifar100(tmp_path).load()
    assert torch.equal(data.train.images, torch.from_numpy(expected))
    assert data.train.labels.tolist() == list(reversed(range(100)))
    assert data.test.labels.tolist() == [7, 99]
    assert data.manifest.variant == "cifar100"
    assert data.manifest.class_names == CLASSES
    assert "100 training and 2 test images, the published set 50,000 and 10,000" in said[0]


def test_from_a_tree(tmp_path: Path, grow: Callable[..., Path]) -> None:
    grow(tmp_path / "cifar100", CLASSES, "jpg", size=(8, 8))
    data = cifar100(tmp_path).load()
    assert data.manifest.variant == "cifar100 (jpeg)"
    assert data.train.images.shape == (300, 3, 32, 32)
    assert data.manifest.test_counts == (2,) * 100


def test_damaged_files_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path, monkeypatch)
    with (tmp_path / "cifar-100-python" / "test").open("ab") as file:
        file.write(b"\0")
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(DataError, match=r"Unpack cifar-100-python.tar.gz there again"):
        cifar100(tmp_path).load()


def test_foreign_classes_are_an_error(tmp_path: Path, grow: Callable[..., Path]) -> None:
    grow(tmp_path / "cifar100", ["apple", "cat"])
    with pytest.raises(DataError, match=r"the 100 classes of CIFAR-100 .* and 94 more; not of CIFAR-100: 'cat'"):
        cifar100(tmp_path).load()
