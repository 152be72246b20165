"""Random numbers that an image brings along: for triggers that vary from image to image, but not from run to run."""

from __future__ import annotations

import torch
from torch import Tensor

from backdoor_bench import seeding

GOLDEN = -7046029254386353131
"""2^64 over the golden ratio, as int64: the step of Steele, Lea and Flood's SplitMix64 (OOPSLA 2014)."""


def image_draws(images: Tensor, count: int, name: str) -> Tensor:
    """(B, ``count``) float32, uniform in [0, 1), on the images' device.

    They depend on an image's pixels (as 8 bit) and on ``name``, on nothing else: neither on its batch, nor on the
    device, nor on what was drawn before. So a trigger that varies, as published, still gives the same image the same
    result every time, and a triggered test set is the same in every process.

    Args:
        images: (B, C, H, W), float, in [0, 1].
        count: how many numbers for each image.
        name: what they are for.
    """
    pixels = images.mul(255).round().to(torch.int64).flatten(1)
    position = torch.arange(pixels.shape[1], device=images.device)
    start = seeding.derive("image", name)
    # int64 wraps around, which is what a hash wants.
    hashed = ((pixels + 1) * _mix(start + GOLDEN * (position + 1))).sum(1)
    drawn = _mix(hashed[:, None] + GOLDEN * torch.arange(1, count + 1, device=images.device))
    return _shift(drawn, 40).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of the result depends on every bit of ``x``, int64."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A right shift that fills with zeros; torch's fills with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
