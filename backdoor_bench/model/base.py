"""What every network is: pixels in [0, 1] in, logits out; normalisation is its first layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""The mean and deviation that leave pixels as they are."""


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


class Resize(nn.Module):
    """(B, 3, H, W) to (B, 3, side, side), bilinear and antialiased, as torchvision resizes tensors."""

    def __init__(self, side: int) -> None:
        super().__init__()
        if isinstance(side, bool) or side < 1:
            raise ValueError(f"resize={side}: expected a side in pixels")
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)

    def extra_repr(self) -> str:
        return f"side={self.side}"


class Network(nn.Module):
    """A classifier of (B, 3, H, W) images in [0, 1] into (B, num_classes) logits.

    A subclass builds ``backbone`` and hands it over; ``name`` is what records call the architecture. Where the network
    works at one size (``resize``), the resizing is part of it, as ``backbone.0``: triggers and perturbations live at
    the images' own size.
    """

    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Patterns of names that other files give tensors of this network, and what to put in their place."""
    resizable: ClassVar[bool] = False
    """Whether ``resize`` is among its options."""

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        mean: Sequence[float] = IDENTITY[0],
        std: Sequence[float] = IDENTITY[1],
        resize: int | None = None,
    ) -> None:
        super().__init__()
        self.name = type(self).__module__.rpartition(".")[2]
        self.normalize = Normalize(mean, std)
        self.backbone = backbone if resize is None else nn.Sequential(Resize(resize), backbone)
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone(self.normalize(images))
        return logits

    def own_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under this network's names, where they carry its builder's or BackdoorBench's."""
        own = self.state_dict().keys()
        for pattern, replacement in self.aliases:
            tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
        prefix = max(("", "backbone.", "backbone.1."), key=lambda prefix: sum(prefix + name in own for name in tensors))
        return {prefix + name: tensor for name, tensor in tensors.items()}


def architecture(node: Mapping[str, Any]) -> str:
    """The name of a configured network: its ``name``, or its module's where the module is one network's alone."""
    return str(node.get("name") or str(node["_target_"]).split(".")[-2])
