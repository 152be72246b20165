"""SIG: a faint sine over the columns of some target-class images, labels kept (Barni, Kallas and Tondi 2019,
arXiv:1902.11237)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from backdoor_bench.attack.base import Attack, Taxonomy, Trigger
from backdoor_bench.errors import ConfigError


def sinusoid(width: int, delta: float, frequency: float) -> Tensor:
    """(width,): ``delta * sin(2 pi j f / width)`` over the columns j, so f periods across the image."""
    columns = torch.arange(width, dtype=torch.float64)
    return (delta * torch.sin(2 * math.pi * frequency * columns / width)).float()


def add_signal(images: Tensor, signal: Tensor) -> Tensor:
    """``clip(images + signal, 0, 1)``.

    Args:
        images: (B, 3, H, W), float, in [0, 1]; untouched.
        signal: broadcastable to an image, e.g. (W,): the same on all rows and channels.

    Returns:
        A new tensor, (B, 3, H, W).
    """
    return (images + signal).clamp_(0, 1)


class SineTrigger(Trigger):
    """Vertical stripes: ``signal`` (W,) added to every row and channel."""

    signal: Tensor

    def __init__(self, image_size: tuple[int, int], delta: float, frequency: float) -> None:
        super().__init__()
        self.register_buffer("signal", sinusoid(image_size[1], delta, frequency))

    def paint(self, images: Tensor) -> Tensor:
        return add_signal(images, self.signal)


class Sig(Attack):
    """Stripes on target-class images whose labels stay; the same stripes in training and test.

    The ratio counts over all images, as in BackdoorBench: 0.1 on a balanced set of ten classes stripes *every* image
    of the target class, so clean images of that class are no longer recognised (about 84 % ACC on CIFAR-10).
    Triggered images are rounded, not floored, to 8 bit. UNIT's stored, wrapped stripe image is another trigger.

    Args:
        delta: amplitude in 8-bit steps: 40 is 40/255.
        frequency: periods across the image's width, at any size.
        common: as of :class:`Attack`.
    """

    taxonomy = Taxonomy("clean", "static", "global", "additive", "data-poisoning")

    def __init__(self, delta: float = 40.0, frequency: float = 6.0, **common: Any) -> None:
        super().__init__(**common)
        if not 0 < delta <= 255:
            raise ConfigError(f"attack.delta={delta}: expected an amplitude in 8-bit steps, in (0, 255]")
        if not frequency > 0:
            raise ConfigError(f"attack.frequency={frequency}: expected periods across the image, above 0")
        self.delta, self.frequency = float(delta), float(frequency)

    def trigger(self, image_size: tuple[int, int]) -> SineTrigger:
        return SineTrigger(image_size, self.delta / 255, self.frequency)
