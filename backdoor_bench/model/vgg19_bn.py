"""VGG19 with BatchNorm (Simonyan and Zisserman 2015, arXiv:1409.1556): torchvision's, from random weights."""

from __future__ import annotations

from collections.abc import Sequence

from torchvision.models import vgg19_bn

from backdoor_bench.model.base import Network


class VGG19BN(Network):
    """torchvision's ``vgg19_bn`` with its own head, as BackdoorBench builds it: no change for small images.

    139,622,218 parameters with 10 classes; at 32x32 the last map is 1x1, replicated to 7x7 by the pooling.
    """

    def __init__(
        self,
        num_classes: int,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__(vgg19_bn(weights=None, num_classes=num_classes), num_classes, mean, std)
