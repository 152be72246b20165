"""A part of a data set, where all of it would take too long: ``dataset.max_train=5000 dataset.max_test=1000``."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch

from backdoor_bench import seeding
from backdoor_bench.dataset.augmentation import Augmentation
from backdoor_bench.dataset.base import Data, Dataset, ImageSet, describe
from backdoor_bench.dataset.split import apportion
from backdoor_bench.errors import ConfigError, DataError


@dataclass(frozen=True)
class Part:
    """How many training and test images are used at most; ``None``: all.

    Which ones is the same for every run: of each class the first in an order drawn once, in proportion to the classes,
    so that a smaller part lies within a larger one but for rounding.
    """

    max_train: int | None = None
    max_test: int | None = None

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise ConfigError(f"dataset.{name}={count}: expected a whole number of images, or null for all")

    def __bool__(self) -> bool:
        return self.max_train is not None or self.max_test is not None

    @property
    def name(self) -> str:
        """For files: ``-5000-1000``, nothing for all."""
        return "".join(f"-{'all' if count is None else count}" for count in vars(self).values()) if self else ""

    def settings(self) -> dict[str, int]:
        return {name: count for name, count in vars(self).items() if count is not None}

    def of(self, data: Data) -> Data:
        """The part of ``data``; its variant says how many images there are.

        Raises:
            DataError: it would leave a class without an image.
        """
        whole = data.manifest
        train = _few(data.train, whole.train_counts, self.max_train, whole.name, "max_train")
        test = _few(data.test, whole.test_counts, self.max_test, whole.name, "max_test")
        if (len(train), len(test)) == (len(data.train), len(data.test)):
            return data
        variant = f"{whole.variant[:-1]}; " if whole.variant.endswith(")") else f"{whole.variant} ("
        variant += f"{len(train):,} + {len(test):,} images)"
        return Data(train, test, describe(whole.name, variant, whole.class_names, train, test), data.augmentation)


class PartedDataset(Dataset):
    """A data set of which a run may take a part.

    Args:
        max_train, max_test: see :class:`Part`.
    """

    def __init__(
        self,
        name: str,
        augmentation: Augmentation,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        max_train: int | None = None,
        max_test: int | None = None,
    ) -> None:
        super().__init__(name, augmentation, mean, std)
        self.part = Part(max_train, max_test)


def _few(data: ImageSet, class_sizes: tuple[int, ...], most: int | None, title: str, option: str) -> ImageSet:
    if most is None or most >= len(data):
        return data
    counts = apportion(Fraction(most, len(data)), list(class_sizes))
    for label, (count, size) in enumerate(zip(counts, class_sizes, strict=True)):
        if size and not count:
            raise DataError(
                f"dataset.{option}={most} of {len(data):,} images leaves class {label} of {title} without one; "
                "use a larger number"
            )
    chosen = []
    for label, count in enumerate(counts):
        members = (data.labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=seeding.generator("part", title, option, label))
        chosen.append(members[order[:count]])
    return data[torch.cat(chosen).sort().values]
