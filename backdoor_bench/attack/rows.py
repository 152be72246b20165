"""Which rows of a batch an attack that controls the training touches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The first rows of a shuffled batch carry the backdoor, the next ones are negatives, the rest is clean.

    Args:
        backdoor: (B,) bool, on the images' device.
        cross: (B,) bool, the negatives: altered, but with their true labels.
        most: no row from here on is ever touched; known on the host, unlike how many rows are.
    """

    backdoor: Tensor
    cross: Tensor
    most: int

    @property
    def touched(self) -> Tensor:
        return self.backdoor | self.cross


def split_rows(
    batch: int, ratio: float, cross_ratio: float, generator: torch.Generator, device: torch.device | str
) -> Rows:
    """``ratio * batch`` backdoor rows, rounded up or down at random so that the mean is exact.

    For each of them there are ``cross_ratio`` negatives (rounded down). How many rows of each kind is known on the
    device only: the host would have to wait for the coin. So work on ``most`` rows, and let the masks tell which count.
    """
    few = math.floor(ratio * batch)
    most = min(batch, few + 1 + int((few + 1) * cross_ratio))
    coin = torch.rand((), generator=generator, device=generator.device) < ratio * batch - few
    backdoors = (few + coin.long()).to(device)
    crosses = (backdoors * cross_ratio).long()
    row = torch.arange(batch, device=device)
    backdoor = row < backdoors
    return Rows(backdoor, (row < backdoors + crosses) & ~backdoor, most)
