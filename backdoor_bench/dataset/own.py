"""What the data sets of a user's own images share: where they lie, their size, a test set held out by a seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from backdoor_bench import seeding
from backdoor_bench.dataset.augmentation import Augmentation
from backdoor_bench.dataset.cache import CachedDataset
from backdoor_bench.dataset.pixels import parse_size
from backdoor_bench.errors import ConfigError, DataError

T = TypeVar("T")


class OwnDataset(CachedDataset):
    """Images that nobody published, of any class count and size.

    Args:
        root: the folder or file. Mandatory.
        image_size: side in pixels, or [height, width], that images are resized to (bilinearly; said when it happens);
            ``None``: they keep the size that all of them have, and where they have several, become the majority's, or
            else squares of their median shorter side.
        test_share: share of each class (at least one image) that is the test set where the source has none.
    """

    wanted: ClassVar[str]
    """What ``root`` shall be and how to give it, for the error without one."""
    test_set: ClassVar[str]
    """What a source with a test set of its own has."""

    def __init__(
        self,
        name: str,
        augmentation: Augmentation,
        root: str | Path | None,
        image_size: int | Sequence[int] | None = None,
        test_share: float = 0.2,
        data_dir: str | Path = "./data",
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        max_train: int | None = None,
        max_test: int | None = None,
    ) -> None:
        super().__init__(name, augmentation, data_dir, False, mean, std, max_train, max_test)
        if not root:
            raise ConfigError(f"dataset={name} needs {self.wanted}")
        self.root = Path(root).expanduser().resolve()
        self.size = parse_size(image_size)
        if not 0 < test_share < 1:
            raise ConfigError(f"dataset.test_share={test_share}: expected a fraction in (0, 1), e.g. 0.2 for 20 %")
        self.test_share = float(test_share)

    def settings(self) -> dict[str, Any]:
        size = list(self.size) if self.size else None
        return {"root": str(self.root), "image_size": size, "test_share": self.test_share}

    @property
    def cache_name(self) -> str:
        """Each source and size has a cache of its own."""
        readable = re.sub(r"[^\w.-]", "_", self.root.name)
        return f"{self.name}-{readable}-{seeding.derive(str(self.settings())) % 16**8:08x}"

    def hold_out(self, found: Mapping[str, Sequence[T]]) -> tuple[dict[str, list[T]], dict[str, list[T]]]:
        """Train and test: of each class a seeded share, rounded, at least one image on either side, in their order.

        Args:
            found: the images of each class, by its name.
        """
        train, test = {}, {}
        for name, images in found.items():
            if len(images) < 2:
                raise DataError(
                    f"{self.root}: class '{name}' has one image; without {self.test_set} it takes two or more, "
                    "one to train and one to test"
                )
            held = min(max(1, int(self.test_share * len(images) + 0.5)), len(images) - 1)
            order = torch.randperm(len(images), generator=seeding.generator("image_folder", "test", name)).tolist()
            test[name] = [images[i] for i in sorted(order[:held])]
            train[name] = [images[i] for i in sorted(order[held:])]
        return train, test
