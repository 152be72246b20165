"""The embedded data set."""

from __future__ import annotations

import torch

from backdoor_bench.dataset import Augmentation
from backdoor_bench.dataset.digits import Digits


def test_digits() -> None:
    data = Digits("digits", Augmentation()).load()
    assert data.train.images.shape == (1442, 3, 32, 32)
    assert data.test.images.shape == (355, 3, 32, 32)
    assert data.manifest.train_counts == tuple(torch.bincount(data.train.labels).tolist())
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    assert data.train.images.max() == 255
    assert data.manifest.class_names == tuple("0123456789")


def test_the_same_every_time_and_no_image_in_both() -> None:
    first, again = (Digits("digits", Augmentation()) for _ in range(2))
    assert first.manifest() == again.manifest()
    data = first.load()
    train = {image.numpy().tobytes() for image in data.train.images}
    test = {image.numpy().tobytes() for image in data.test.images}
    assert not train & test
