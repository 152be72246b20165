"""PreAct-ResNet18 for small images (He et al. 2016, arXiv:1603.05027), as the benchmarks build it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from backdoor_bench.model.base import IDENTITY, Network
from backdoor_bench.model.residual import classifier, groups, require_size


class PreActBlock(nn.Module):
    """BN, ReLU, 3x3 conv, BN, ReLU, 3x3 conv; the shortcut is a 1x1 conv without BN where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        carried = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return out + carried  # type: ignore[no-any-return]


class PreActResNet18(Network):
    """Blocks [2, 2, 2, 2] of widths ``width * (1, 2, 4, 8)``, a 3x3 stride-1 stem, global average pool, linear head.

    11,171,146 parameters at the published ``width=64`` with 10 classes; 16 BN layers; no BN after the last conv.
    ``blocks=None`` is the published depth, four other numbers another.
    """

    published: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)
    aliases = ((r"\bshortcut\.0\.", "shortcut."),)  # BackdoorBench wraps the shortcut's convolution

    def __init__(
        self,
        num_classes: int,
        width: int = 64,
        mean: Sequence[float] = IDENTITY[0],
        std: Sequence[float] = IDENTITY[1],
        blocks: Sequence[int] | None = None,
    ) -> None:
        require_size(blocks or self.published, width)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(3, width, 3, padding=1, bias=False))
        layers |= groups(PreActBlock, blocks or self.published, width) | classifier(width, num_classes)
        super().__init__(nn.Sequential(layers), num_classes, mean, std)
