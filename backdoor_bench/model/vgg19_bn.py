"""VGG19 with BatchNorm (Simonyan and Zisserman 2015, arXiv:1409.1556): torchvision's."""

from __future__ import annotations

from collections.abc import Sequence

from backdoor_bench.model.base import IDENTITY
from backdoor_bench.model.torchvision import TorchvisionNetwork


class VGG19BN(TorchvisionNetwork):
    """torchvision's ``vgg19_bn`` with its own head, as BackdoorBench builds it: no change for small images.

    139,622,218 parameters with 10 classes; at 32x32 the last map is 1x1, replicated to 7x7 by the pooling.
    """

    resizable = False

    def __init__(
        self,
        num_classes: int,
        mean: Sequence[float] = IDENTITY[0],
        std: Sequence[float] = IDENTITY[1],
    ) -> None:
        super().__init__("vgg19_bn", num_classes, mean, std)
