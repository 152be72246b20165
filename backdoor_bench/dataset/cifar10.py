"""CIFAR-10 (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from backdoor_bench.dataset import tree
from backdoor_bench.dataset.base import ImageSet
from backdoor_bench.dataset.cache import Decoded
from backdoor_bench.dataset.published import PublishedDataset
from backdoor_bench.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar10(PublishedDataset):
    """50,000 + 10,000 images of 32x32 in 10 classes, whose names in alphabetical order are the official labels.

    A tree of JPEGs is not the official pixels: its variant is ``cifar10 (jpeg)``. Torchvision's files are
    ``DATA_DIR/cifar-10-batches-py``.
    """

    version = 1
    published = (50_000, 10_000)

    @property
    def official(self) -> Path:
        return self.data_dir / "cifar-10-batches-py"

    def from_tree(self, root: Path, signature: str | None) -> Decoded:
        found = tree.both(root)
        if tuple(found[0]) != CLASSES:
            missing, foreign = [c for c in CLASSES if c not in found[0]], [c for c in found[0] if c not in CLASSES]
            raise DataError(
                f"{root}: expected the ten classes of CIFAR-10 ({', '.join(CLASSES)}); "
                f"missing: {', '.join(missing) or 'none'}; not of CIFAR-10: {', '.join(foreign) or 'none'}"
            )
        (train, test), seen = tree.decode(self.name, [tree.samples(part) for part in found], (32, 32))
        variant = f"cifar10 ({seen.lossy})" if seen.lossy else "cifar10"
        return Decoded(train, test, CLASSES, variant, str(root), signature)

    def from_torchvision(self) -> Decoded:
        from torchvision.datasets import CIFAR10

        parts = []
        for is_train in (True, False):
            try:  # torchvision compares the md5 of every file before it unpickles one
                part = CIFAR10(str(self.data_dir), train=is_train, download=self.download)
            except (RuntimeError, OSError) as error:
                raise DataError(
                    f"{self.name}: torchvision cannot provide {self.official} ({error}): its files are incomplete, "
                    "damaged or out of reach. Unpack cifar-10-python.tar.gz there again, or, with a network, let "
                    "torchvision fetch it with download=true"
                ) from None
            images = torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))
            parts.append(ImageSet(images, torch.tensor(part.targets, dtype=torch.int64)))
        return Decoded(parts[0], parts[1], CLASSES, "cifar10", str(self.official))
