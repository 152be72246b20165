"""BadNets: a fixed patch in a corner (Gu, Dolan-Gavitt and Garg 2017, arXiv:1708.06733)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backdoor_bench.attack.base import Attack, Taxonomy, Trigger


def paste(images: Tensor, patch: Tensor, top: int, left: int) -> Tensor:
    """Replace a rectangle of every image by ``patch``.

    Args:
        images: (B, 3, H, W), float, in [0, 1]; untouched.
        patch: (3, h, w), float, in [0, 1].
        top, left: position of the patch's first row and column.

    Returns:
        A new tensor, (B, 3, H, W).
    """
    pasted = images.clone()
    pasted[:, :, top : top + patch.shape[1], left : left + patch.shape[2]] = patch
    return pasted


class PatchTrigger(Trigger):
    """A square white patch of ``size`` pixels in the bottom-right corner, without margin."""

    patch: Tensor

    def __init__(self, image_size: tuple[int, int], size: int) -> None:
        super().__init__()
        height, width = image_size
        if not 0 < size <= min(height, width):
            raise ValueError(f"a patch of {size} pixels does not fit an image of {height}x{width}")
        self.top, self.left = height - size, width - size
        self.register_buffer("patch", torch.ones(3, size, size))

    def paint(self, images: Tensor) -> Tensor:
        return paste(images, self.patch, self.top, self.left)


class BadNet(Attack):
    """White square, 3 pixels at 32x32, 6 at 64x64 (``size=null``: 3/32 of the height, rounded).

    BackdoorBench's bilinearly enlarged trigger at 64x64 and UNIT's flower patch are other triggers.
    """

    taxonomy = Taxonomy("dirty", "static", "local", "replacement", "data-poisoning")

    def __init__(self, size: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.size = size

    def trigger(self, image_size: tuple[int, int]) -> PatchTrigger:
        return PatchTrigger(image_size, self.size or max(1, round(3 * image_size[0] / 32)))
