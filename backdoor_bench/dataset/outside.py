"""Images of another data set than the run's own: an attacker's public data, a defender's unlabelled images."""

from __future__ import annotations

import torch

from backdoor_bench.dataset.base import Dataset, ImageSet
from backdoor_bench.dataset.pixels import resize


def outside(dataset: Dataset, like: ImageSet, device: torch.device) -> ImageSet:
    """The training images of ``dataset``, on the device, resized to those of ``like``; the labels are its own."""
    data, (height, width) = dataset.load().train, like.images.shape[2:]
    return ImageSet(resize(data.images, (height, width)), data.labels).to(device)
