"""BadNets: a fixed patch in a corner (Gu, Dolan-Gavitt and Garg 2017, arXiv:1708.06733)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor_bench.attack.base import Attack, AttackerView, Taxonomy, Trigger
from backdoor_bench.errors import ConfigError, unknown

Patch = Literal["white", "enlarged", "colour"]


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


def enlarged_square(image_size: tuple[int, int]) -> Tensor:
    """(3, h, w): the 3x3 white square of a black 32x32 picture, enlarged bilinearly, where it is not black.

    7x7 at 64x64, with a rim of two greys. Rounded to 8 bit.
    """
    picture = F.pad(torch.ones(1, 1, 3, 3), (29, 0, 29, 0))
    picture = F.interpolate(picture, size=image_size, mode="bilinear", align_corners=False)[0]
    picture = picture.mul(255).round().div(255)
    rows, columns = picture[0].any(1), picture[0].any(0)
    return picture[:, rows][:, :, columns].expand(3, -1, -1)


class PatchTrigger(Trigger):
    """An opaque patch, white until :meth:`BadNet.prepare` draws it.

    Args:
        image_size: (H, W).
        size: (h, w), or a square's side, in pixels.
        margin: distance in pixels from the top left corner; None: in the bottom right corner, without margin.
    """

    patch: Tensor

    def __init__(self, image_size: tuple[int, int], size: int | tuple[int, int], margin: int | None = None) -> None:
        super().__init__()
        size = (size, size) if isinstance(size, int) else size
        ends = [side + (margin or 0) for side in size]
        if min(size) < 1 or any(end > side for end, side in zip(ends, image_size, strict=True)):
            raise ConfigError(
                f"a patch of {size[0]}x{size[1]} pixels does not fit an image of {image_size[0]}x{image_size[1]}; "
                "lower attack.size"
            )
        corner = (image_size[0] - size[0], image_size[1] - size[1])
        self.top, self.left = corner if margin is None else (margin, margin)
        self.register_buffer("patch", torch.ones(3, *size))

    def paint(self, images: Tensor) -> Tensor:
        return paste(images, self.patch, self.top, self.left)


class BadNet(Attack):
    """A small opaque patch, the same in training and test.

    Args:
        size: side of the patch in pixels. None: 3/32 of the image's height, rounded, so 3 at 32x32 and 6 at 64x64;
            with ``colour`` a sixth of it, rounded down.
        patch: ``white``: a square in the bottom right corner, as TSBD describes it. ``enlarged``: what BackdoorBench
            makes of it at other sizes than 32x32, see :func:`enlarged_square`. ``colour``: uniform random pixels,
            drawn once from the seed, near the top left corner; stands in for UNIT's flower, of the same size and place.
            UNIT stamps after augmentation, which is not done here.
        common: as of :class:`Attack`.
    """

    taxonomy = Taxonomy("dirty", "static", "local", "replacement", "data-poisoning")

    def __init__(self, size: int | None = None, patch: Patch = "white", **common: Any) -> None:
        super().__init__(**common)
        if patch not in get_args(Patch):
            raise unknown("attack.patch", patch, get_args(Patch))
        if patch == "enlarged" and size is not None:
            raise ConfigError(f"attack.size={size} with attack.patch=enlarged: its size follows from the image's")
        if size is not None and size < 1:
            raise ConfigError(f"attack.size={size}: expected a side of 1 pixel or more; null: 3/32 of the image's")
        self.size, self.patch = size, patch

    def trigger(self, image_size: tuple[int, int]) -> PatchTrigger:
        height = image_size[0]
        if self.patch == "enlarged":
            _, rows, columns = enlarged_square(image_size).shape
            return PatchTrigger(image_size, (rows, columns))
        colour = self.patch == "colour"
        size = self.size or max(1, height // 6 if colour else round(3 * height / 32))
        return PatchTrigger(image_size, size, height // 32 if colour else None)

    def prepare(self, trigger: Trigger, view: AttackerView) -> None:
        assert isinstance(trigger, PatchTrigger)
        if self.patch == "enlarged":
            height, width = view.train.images.shape[2:]
            trigger.patch.copy_(enlarged_square((height, width)))
        elif self.patch == "colour":
            trigger.patch.copy_(torch.rand(trigger.patch.shape, generator=view.generator("patch")))
