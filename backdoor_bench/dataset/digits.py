"""The embedded default: scikit-learn's handwritten digits, real images that come with a dependency."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from backdoor_bench import seeding
from backdoor_bench.dataset.base import Data, ImageSet, Manifest, describe
from backdoor_bench.dataset.part import PartedDataset


class Digits(PartedDataset):
    """1,797 grey 8x8 digits (Alpaydin and Kaynak 1998), enlarged bilinearly to 32x32 RGB.

    A fixed, seeded fifth of each class is the test set. Nothing is cached: making it takes milliseconds.
    """

    version = 1

    def load(self) -> Data:
        from sklearn.datasets import load_digits

        digits = load_digits()
        small = torch.from_numpy(digits.images).float().div(16)[:, None]
        large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
        images = large.mul(255).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        labels = torch.from_numpy(digits.target).long()
        everything = ImageSet(images, labels)
        is_test = torch.zeros(len(labels), dtype=torch.bool)
        for digit in range(10):
            members = (labels == digit).nonzero().flatten()
            order = torch.randperm(len(members), generator=seeding.generator("digits", "test", digit))
            is_test[members[order[: len(members) // 5]]] = True
        train, test = everything[~is_test], everything[is_test]
        names = tuple(str(digit) for digit in range(10))
        manifest = describe(self.name, "digits (scikit-learn)", names, train, test)
        return self.part.of(Data(train, test, manifest, self.augmentation))

    def manifest(self) -> Manifest:
        return self.load().manifest
