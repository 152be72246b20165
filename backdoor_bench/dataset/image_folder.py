"""Your own images: any folder of class folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backdoor_bench import seeding
from backdoor_bench.dataset import tree
from backdoor_bench.dataset.augmentation import Augmentation
from backdoor_bench.dataset.cache import CachedDataset, Decoded
from backdoor_bench.errors import ConfigError, DataError

Classes = dict[str, list[Path]]


class ImageFolder(CachedDataset):
    """``ROOT/{train,test}/CLASS/IMAGE``, or ``ROOT/CLASS/IMAGE`` of which a seeded share of each class is the test set.

    Labels are the class folders in alphabetical order. Grey images become RGB, transparency is dropped. Everything is
    held in memory as uint8. The cache is made anew when a file of the tree is added, removed, renamed or touched.

    Args:
        root: the folder. Mandatory.
        image_size: side in pixels, or [height, width], that images are resized to (bilinearly; said when it happens);
            ``None``: all images have one size, and keep it.
        test_share: share of each class (at least one image) that is the test set where there are no folders ``train``
            and ``test``.
    """

    version = 1

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
    ) -> None:
        super().__init__(name, augmentation, data_dir, False, mean, std)
        if not root:
            raise ConfigError("dataset=image_folder needs the folder of your images: give dataset.root=PATH")
        self.root = Path(root).expanduser().resolve()
        self.size = _size(image_size)
        if not 0 < test_share < 1:
            raise ConfigError(f"dataset.test_share={test_share}: expected a fraction in (0, 1), e.g. 0.2 for 20 %")
        self.test_share = float(test_share)

    def locate(self) -> Callable[[], Decoded]:
        if not self.root.is_dir():
            raise DataError(
                f"{self.name}: dataset.root={self.root} is no folder (and there is no cache {self.images_file}); "
                "expected ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE, or ROOT/CLASS/IMAGE"
            )
        return self._decode

    def settings(self) -> dict[str, Any]:
        size = list(self.size) if self.size else None
        return {"root": str(self.root), "image_size": size, "test_share": self.test_share}

    @property
    def cache_name(self) -> str:
        """Each folder and size has a cache of its own."""
        readable = re.sub(r"[^\w.-]", "_", self.root.name)
        return f"{self.name}-{readable}-{seeding.derive(str(self.settings())) % 16**8:08x}"

    def signature(self) -> str | None:
        if not self.root.is_dir():
            return None
        try:
            splits, _ = self._splits()
            return tree.files_signature(self.root, (path for split in splits for path, _ in split))
        except DataError:
            return "unreadable"  # never the signature of a cache: decoding will say what is wrong

    def _splits(self) -> tuple[list[list[tree.Sample]], tuple[str, ...]]:
        """The samples of train and test, and the class names."""
        if tree.is_tree(self.root):
            train, test = tree.both(self.root)
        else:
            train, test = _hold_out(tree.classes(self.root), self.test_share, self.root)
        if len(train) < 2:
            raise DataError(f"{self.root} has one class, {next(iter(train))!r}; a classifier needs two or more")
        return [tree.samples(train), tree.samples(test)], tuple(train)

    def _decode(self) -> Decoded:
        signature = self.signature()
        splits, names = self._splits()
        (train, test), seen = tree.decode(self.name, splits, self.size)
        height, width = train.images.shape[2:]
        notes = [self.root.name, f"{width}x{height}", *([seen.lossy] if seen.lossy else [])]
        return Decoded(train, test, names, f"{self.name} ({', '.join(notes)})", str(self.root), signature)


def _hold_out(found: Mapping[str, list[Path]], share: float, root: Path) -> tuple[Classes, Classes]:
    """A seeded share of each class, rounded, at least one image of it on either side; each side in file order."""
    train, test = {}, {}
    for name, paths in found.items():
        if len(paths) < 2:
            raise DataError(
                f"{root}: class '{name}' has one image; without folders 'train' and 'test' it takes two or more, "
                "one to train and one to test"
            )
        held = min(max(1, int(share * len(paths) + 0.5)), len(paths) - 1)
        order = torch.randperm(len(paths), generator=seeding.generator("image_folder", "test", name)).tolist()
        test[name] = [paths[i] for i in sorted(order[:held])]
        train[name] = [paths[i] for i in sorted(order[held:])]
    return train, test


def _size(image_size: int | Sequence[int] | None) -> tree.Size | None:
    if image_size is None:
        return None
    sides = (
        list(image_size) if isinstance(image_size, Sequence) and not isinstance(image_size, str) else [image_size] * 2
    )
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ConfigError(
            f"dataset.image_size={image_size}: expected a number of pixels, [height,width], or null to keep the size"
        )
    return sides[0], sides[1]
