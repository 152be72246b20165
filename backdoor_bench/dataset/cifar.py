"""What CIFAR-10 and CIFAR-100 share (Krizhevsky 2009)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from backdoor_bench.dataset import tree
from backdoor_bench.dataset.base import ImageSet
from backdoor_bench.dataset.cache import Decoded
from backdoor_bench.dataset.published import PublishedDataset


class Cifar(PublishedDataset):
    """50,000 + 10,000 images of 32x32, in classes whose names in alphabetical order are the official labels.

    A tree of JPEGs is not the official pixels, and its variant says so, as in ``cifar10 (jpeg)``.
    """

    published = (50_000, 10_000)
    classes: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    """As its authors write it."""
    folder: ClassVar[str]
    """Of torchvision's files, below DATA_DIR."""
    archive: ClassVar[str]

    @property
    def official(self) -> Path:
        return self.data_dir / self.folder

    @staticmethod
    def torchvision_class() -> Any:
        """Imported only where it is needed."""
        raise NotImplementedError

    def from_tree(self, root: Path, signature: str | None) -> Decoded:
        found = tree.both(root)
        self.require_classes(root, list(found[0]), self.classes, self.title)
        (train, test), seen = tree.decode(self.name, [tree.samples(part) for part in found], (32, 32))
        variant = f"{self.name} ({seen.lossy})" if seen.lossy else self.name
        return Decoded(train, test, self.classes, variant, str(root), signature)

    def from_official(self) -> Decoded:
        make = partial(self.torchvision_class(), str(self.data_dir), download=self.download)
        parts = []
        for is_train in (True, False):
            # torchvision compares the md5 of every file before it unpickles one
            part = self.obtained(self.archive, partial(make, train=is_train))
            images = torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))
            parts.append(ImageSet(images, torch.tensor(part.targets, dtype=torch.int64)))
        return Decoded(parts[0], parts[1], self.classes, self.name, str(self.official))
