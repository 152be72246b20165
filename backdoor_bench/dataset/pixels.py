"""What every source of images asks: which size, how to resize, and whether this machine can hold the result."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median_low

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from backdoor_bench import progress
from backdoor_bench.errors import ConfigError, DataError

Size = tuple[int, int]
"""(height, width)"""


def parse_size(image_size: int | Sequence[int] | None) -> Size | None:
    """What ``dataset.image_size`` may be: the side of a square, [height, width], or nothing."""
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


def majority(sizes: Counter[Size]) -> Size | None:
    """The size that more than half of the images have, if there is one."""
    size, count = sizes.most_common(1)[0]
    return size if 2 * count > sizes.total() else None


def common_size(sizes: Counter[Size]) -> Size:
    """The size that images of several sizes are resized to where nobody names one.

    That of the majority; where there is none, as among photographs, a square as long as the median of their shorter
    sides, so that as many are enlarged as are reduced and neither orientation is preferred.
    """
    side = median_low(sorted(min(size) for size in sizes.elements()))
    return majority(sizes) or (side, side)


def written(size: Size) -> str:
    """As people write it: 32x24 is 32 pixels wide."""
    return f"{size[1]}x{size[0]}"


def say_unequal(title: str, sizes: Counter[Size], chosen: Size) -> None:
    """Tell the person that images of several sizes become one, which, why, and how to have another."""
    smallest, largest = (extreme(sizes, key=lambda size: size[0] * size[1]) for extreme in (min, max))
    why = "as most have" if majority(sizes) else "the median of their shorter sides"
    progress.say(
        f"{title}: images have {len(sizes):,} sizes, {written(smallest)} to {written(largest)}; all become "
        f"{written(chosen)}, {why} (another size: dataset.image_size=PIXELS or [HEIGHT,WIDTH])"
    )


def resized(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """(H, W, 3) of an RGB image, bilinear and antialiased (Pillow's); untouched where the size is right."""
    if (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def resize(images: Tensor, size: Size) -> Tensor:
    """uint8 (N, 3, H, W) on the CPU to another size, by the same arithmetic as files are resized with."""
    if tuple(images.shape[2:]) == size:
        return images
    result = np.empty((len(images), 3, *size), np.uint8)

    def work(i: int) -> None:
        result[i] = resized(Image.fromarray(images[i].permute(1, 2, 0).contiguous().numpy()), size).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(work, range(len(images))):
            pass
    return torch.from_numpy(result)


def require_memory(title: str, what: str, needed: int, advice: str) -> None:
    """Refuse, before anything is allocated, what is larger than all of this machine's memory.

    Args:
        title: the data set's name.
        what: what is large, e.g. ``1,000 images of 32x32``.
        needed: bytes.
        advice: what to do instead.
    """
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    if needed > present:
        raise DataError(
            f"{title}: {what} take {needed / 2**30:.0f} GiB, and this machine has {present / 2**30:.0f} GiB of memory; "
            f"{advice}"
        )
