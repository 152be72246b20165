"""STL-10 (Coates, Lee and Ng 2011)."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch

from backdoor_bench import progress
from backdoor_bench.dataset import tree
from backdoor_bench.dataset.base import ImageSet
from backdoor_bench.dataset.cache import Decoded
from backdoor_bench.dataset.pixels import resize, written
from backdoor_bench.dataset.published import ResizableDataset
from backdoor_bench.errors import DataError

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


class Stl10(ResizableDataset):
    """The 5,000 + 8,000 labelled images of 96x96 in ten classes; the 100,000 unlabelled ones are not used.

    Torchvision's files are ``DATA_DIR/stl10_binary``; it asks for the unlabelled images to be among them.
    """

    version = 1
    published = (5_000, 8_000)
    native = (96, 96)

    @property
    def official(self) -> Path:
        return self.data_dir / "stl10_binary"

    def from_tree(self, root: Path, signature: str | None) -> Decoded:
        found = tree.both(root)
        self.require_classes(root, list(found[0]), CLASSES, "STL-10")
        (train, test), seen = tree.decode(self.name, [tree.samples(part) for part in found], self.size)
        variant = self.variant(root, seen, (train.images.shape[2], train.images.shape[3]))
        return Decoded(train, test, CLASSES, variant, str(root), signature)

    def from_official(self) -> Decoded:
        from torchvision.datasets import STL10

        make = partial(STL10, str(self.data_dir), download=self.download)
        parts = [self._part(self.obtained(STL10.filename, partial(make, split=split))) for split in ("train", "test")]
        held = self.size or self.native
        if held != self.native:
            count = sum(map(len, parts))
            progress.say(f"{self.name}: {count:,} of {count:,} images resized to {written(held)} (bilinear)")
        variant = self.variant(self.official, tree.Seen(Counter(), Counter({self.native: 1})), held)
        return Decoded(parts[0], parts[1], CLASSES, variant, str(self.official))

    def _part(self, part: object) -> ImageSet:
        """One of torchvision's splits: (N, 3, 96, 96) uint8 and labels that it made of the files' 1 ... 10."""
        images, labels = np.ascontiguousarray(part.data), part.labels.astype(np.int64)  # type: ignore[attr-defined]
        if len(labels) != len(images) or not set(np.unique(labels)) <= set(range(len(CLASSES))):
            raise DataError(f"{self.official}: expected one label of 1 to 10 for each of {len(images):,} images")
        return ImageSet(resize(torch.from_numpy(images), self.size or self.native), torch.from_numpy(labels))
