"""Your own arrays: one ``.npz`` with images and labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backdoor_bench import progress
from backdoor_bench.dataset import tree
from backdoor_bench.dataset.arrays import Arrays, Declared
from backdoor_bench.dataset.base import ImageSet
from backdoor_bench.dataset.cache import Decoded
from backdoor_bench.dataset.own import OwnDataset
from backdoor_bench.dataset.pixels import Size, common_size, require_memory, resize, say_unequal, written
from backdoor_bench.errors import DataError

CHUNK = 1000
IMAGES = "uint8, or float in [0, 1]"
RENUMBER = "expected 0 ... C-1, each of them in y_train; renumber them, e.g. numpy.unique(y, return_inverse=True)[1]"


class Npz(OwnDataset):
    """``x_train, y_train, x_test, y_test``; without the last two a seeded share of each class is the test set.

    Images are (N, H, W, C), (N, C, H, W) or grey (N, H, W), with 1 or 3 channels, uint8 or float in [0, 1], which is
    rounded to uint8. Labels are integers 0 ... C-1, each of them in ``y_train``. Other arrays are passed over. The
    cache is made anew when the file's size or time changes.
    """

    version = 1
    wanted = "your file: give dataset.root=FILE.npz, with x_train, y_train and perhaps x_test, y_test"
    test_set = "x_test and y_test"

    def locate(self) -> Callable[[], Decoded]:
        if not self.root.is_file():
            raise DataError(
                f"{self.name}: dataset.root={self.root} is no file (and there is no cache {self.images_file}); "
                "expected an .npz with x_train, y_train and perhaps x_test, y_test, as numpy.savez writes it"
            )
        return self._decode

    def signature(self) -> str | None:
        return tree.files_signature(self.root.parent, [self.root]) if self.root.is_file() else None

    def _decode(self) -> Decoded:
        signature = self.signature()
        with Arrays(self.root) as arrays:
            parts = self._declared(arrays)
            self._require_memory(parts)
            sets = [ImageSet(_images(arrays, part), _labels(arrays, part)) for part in parts]
        classes = _class_count(self.root.name, sets)
        names = tuple(str(label) for label in range(classes))
        train, test = self._resized(sets) if len(sets) == 2 else self._split(self._resized(sets)[0], names)
        size = written((train.images.shape[2], train.images.shape[3]))
        return Decoded(train, test, names, f"{self.name} ({self.root.name}, {size})", str(self.root), signature)

    def _declared(self, arrays: Arrays) -> list[Part]:
        """What the headers say, before any pixel is read."""
        wanted = [("x_train", "y_train")]
        if {"x_test", "y_test"} & arrays.names:
            wanted.append(("x_test", "y_test"))
        missing = [name for pair in wanted for name in pair if name not in arrays.names]
        if missing:
            found = tree.few(sorted(arrays.names)) or "nothing"
            raise DataError(
                f"{self.root.name} lacks {tree.few(missing)}; it holds {found}; expected x_train and y_train, and "
                "x_test and y_test or neither of them"
            )
        return [Part.of(self.root.name, images, labels, arrays) for images, labels in wanted]

    def _require_memory(self, parts: list[Part]) -> None:
        """For the largest array as it is in the file, beside all images as uint8."""
        needed = max(part.declared.nbytes for part in parts) + sum(
            part.count * 3 * math.prod(part.size) for part in parts
        )
        what = " and ".join(f"{part.images} {part.declared.shape} {part.declared.dtype}" for part in parts)
        require_memory(self.name, what, needed, "save fewer or smaller images")

    def _resized(self, sets: list[ImageSet]) -> list[ImageSet]:
        sizes: Counter[Size] = Counter()
        for part in sets:
            sizes[part.images.shape[2], part.images.shape[3]] += len(part)
        chosen = self.size or common_size(sizes)
        if self.size is None and len(sizes) > 1:
            say_unequal(self.name, sizes, chosen)
        others = sizes.total() - sizes[chosen]
        if others:
            require_memory(
                self.name,
                f"{others:,} images of {written(chosen)} as uint8",
                others * 3 * math.prod(chosen),
                "take a smaller dataset.image_size",
            )
            progress.say(f"{self.name}: {others:,} of {sizes.total():,} images resized to {written(chosen)} (bilinear)")
        return [ImageSet(resize(part.images, chosen), part.labels) for part in sets]

    def _split(self, everything: ImageSet, names: tuple[str, ...]) -> tuple[ImageSet, ImageSet]:
        members = {name: (everything.labels == int(name)).nonzero().flatten().tolist() for name in names}
        train, test = (
            everything[torch.tensor(sorted(i for positions in part.values() for i in positions))]
            for part in self.hold_out(members)
        )
        return train, test


@dataclass(frozen=True)
class Part:
    """One of the two sets, as its headers declare it. ``channels``: the axis they are on, ``None`` for grey."""

    images: str
    labels: str
    declared: Declared
    channels: int | None

    @classmethod
    def of(cls, title: str, images: str, labels: str, arrays: Arrays) -> Part:
        found, targets = arrays.declared(images), arrays.declared(labels)
        if found.dtype.kind not in "f" and found.dtype != np.uint8:
            raise DataError(f"{title}: {images} is {found.dtype}; expected {IMAGES}")
        if targets.dtype.kind not in "iu":
            raise DataError(f"{title}: {labels} is {targets.dtype}; expected integers 0 ... C-1, one for each image")
        if not math.prod(found.shape) or targets.shape not in ((found.shape[0],), (found.shape[0], 1)):
            raise DataError(
                f"{title}: {images} is {found.shape} and {labels} {targets.shape}; expected at least one image, "
                "and one label for each"
            )
        axes = [axis for axis in (1, 3) if len(found.shape) == 4 and found.shape[axis] in (1, 3)]
        if len(axes) != 1 and len(found.shape) != 3:
            why = "fits both" if len(axes) == 2 else "fits neither"
            raise DataError(
                f"{title}: {images} is {found.shape}; expected (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, or "
                f"(N, H, W), and this {why}"
            )
        return cls(images, labels, found, axes[0] if axes else None)

    @property
    def count(self) -> int:
        return self.declared.shape[0]

    @property
    def size(self) -> Size:
        height, width = (side for axis, side in enumerate(self.declared.shape) if axis not in (0, self.channels))
        return height, width


def _images(arrays: Arrays, part: Part) -> Tensor:
    """(N, 3, H, W) uint8, converted in pieces."""
    array = arrays.read(part.images)
    array = array[:, None] if part.channels is None else np.moveaxis(array, part.channels, 1)
    result = np.empty((part.count, 3, *part.size), np.uint8)
    for start in range(0, part.count, CHUNK):
        piece = array[start : start + CHUNK]
        if piece.dtype != np.uint8:
            low, high = float(piece.min()), float(piece.max())
            if not (low >= 0 and high <= 1):  # so written, NaN is refused too
                raise DataError(
                    f"{arrays.title}: {part.images} has values from {low:g} to {high:g}; expected {IMAGES} (divide by "
                    "255, or undo a normalisation)"
                )
            piece = np.rint(piece.astype(np.float32) * np.float32(255))
        result[start : start + CHUNK] = piece  # one channel is repeated
    return torch.from_numpy(result)


def _labels(arrays: Arrays, part: Part) -> Tensor:
    """(N,) int64."""
    labels = arrays.read(part.labels).reshape(-1)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= part.count + 1_000_000:  # far beyond what could be 0 ... C-1, and perhaps beyond int64
        raise DataError(f"{arrays.title}: {part.labels} has labels {low} to {high}; {RENUMBER}")
    return torch.from_numpy(labels.astype(np.int64))


def _class_count(title: str, sets: list[ImageSet]) -> int:
    """C, where the training labels are 0 ... C-1 and the test labels among them."""
    found = sets[0].labels.unique().tolist()
    if found != list(range(len(found))):
        missing = next(label for label in range(len(found)) if found[label] != label)
        raise DataError(
            f"{title}: y_train has {len(found)} different labels from {found[0]} to {found[-1]}, without {missing}; "
            f"{RENUMBER}"
        )
    if len(found) < 2:
        raise DataError(f"{title}: y_train has one class; a classifier needs two or more")
    foreign = sorted(set(sets[-1].labels.tolist()) - set(found))
    if foreign:
        raise DataError(f"{title}: y_test has the label {foreign[0]}, y_train only 0 to {found[-1]}; {RENUMBER}")
    return len(found)
