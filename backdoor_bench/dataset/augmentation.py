"""Crop, flip and rotation as batched, differentiable tensor operations with a generator of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """Random crop with zero padding, horizontal flip and rotation, drawn per image.

    Args:
        crop_padding: pixels of zeros (black, in [0, 1]) around the image before the crop; 0: no crop.
        crop_probability: share of images that are cropped.
        flip: mirror left-right with probability 1/2.
        rotation: largest angle in degrees, uniform in [-rotation, rotation], bilinear, zeros outside; 0: none.
        rotation_probability: share of images that are rotated.
    """

    crop_padding: int = 0
    crop_probability: float = 1.0
    flip: bool = False
    rotation: float = 0.0
    rotation_probability: float = 1.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) to a new tensor of the same shape; any dtype, float when rotating.

        The generator lives on the images' device or on the CPU.
        """
        if self.crop_padding or self.flip:
            images = self._crop_and_flip(images, generator)
        if self.rotation:
            images = self._rotate(images, generator)
        return images

    def _crop_and_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        pad = self.crop_padding
        padded = F.pad(images, (pad,) * 4) if pad else images
        rows = torch.arange(height, device=images.device).expand(batch, -1)
        columns = torch.arange(width, device=images.device).expand(batch, -1)
        if self.flip:
            mirrored = _coin(batch, 0.5, generator, images.device)[:, None]
            columns = torch.where(mirrored, width - 1 - columns, columns)
        if pad:
            shift = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator, device=generator.device)
            shift = shift.to(images.device)
            if self.crop_probability < 1:
                shift = torch.where(_coin(batch, self.crop_probability, generator, images.device), shift, pad)
            rows, columns = rows + shift[0, :, None], columns + shift[1, :, None]
        # One gather for crop and flip together. The two index tensors put the channel last: channels_last for free.
        index = torch.arange(batch, device=images.device)[:, None, None]
        return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _rotate(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch = len(images)
        angle = torch.rand(batch, generator=generator, device=generator.device).to(images.device)
        angle = (2 * angle - 1) * math.radians(self.rotation)
        if self.rotation_probability < 1:
            angle = angle * _coin(batch, self.rotation_probability, generator, images.device)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        aspect = images.shape[2] / images.shape[3]  # the grid goes from -1 to 1 along either side, however long it is
        matrix = torch.stack([torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)], 1)
        with torch.autocast(images.device.type, enabled=False):  # in bfloat16 a coordinate is wrong by 0.06 pixels
            grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
            return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def _coin(count: int, probability: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """(count,) bool, True with the given probability."""
    return (torch.rand(count, generator=generator, device=generator.device) < probability).to(device)
