"""What every network is: pixels in [0, 1] in, logits out; normalisation is its first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std per channel. The constants are configuration, so they are not in the ``state_dict``."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"expected three means and three positive deviations, got mean={mean}, std={std}")
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Network(nn.Module):
    """A classifier of (B, 3, H, W) images in [0, 1] into (B, num_classes) logits.

    A subclass builds ``backbone`` and hands it over. Every activation is a module of its own, called once per
    forward, so that stages can put something behind it.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.backbone = backbone
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone(self.normalize(images))
        return logits
