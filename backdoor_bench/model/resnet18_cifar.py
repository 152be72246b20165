"""ResNet18 for small images (He et al. 2016, arXiv:1512.03385): what UNIT's tables call ResNet18."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from backdoor_bench.model.base import IDENTITY, Network
from backdoor_bench.model.residual import classifier, groups, require_size


class BasicBlock(nn.Module):
    """3x3 conv, BN, ReLU, 3x3 conv, BN, sum, ReLU; the shortcut is a 1x1 conv with BN where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet18Cifar(Network):
    """Blocks [2, 2, 2, 2] of widths ``width * (1, 2, 4, 8)``, a 3x3 stride-1 stem without pooling, ``linear`` head.

    11,173,962 parameters at the published ``width=64`` with 10 classes; 20 BN layers. ``blocks=None`` is the
    published depth, four other numbers another.
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 64,
        mean: Sequence[float] = IDENTITY[0],
        std: Sequence[float] = IDENTITY[1],
        blocks: Sequence[int] | None = None,
    ) -> None:
        require_size(blocks or (2, 2, 2, 2), width)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(3, width, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(width), relu=nn.ReLU()
        )
        layers |= groups(BasicBlock, blocks or (2, 2, 2, 2), width) | classifier(width, num_classes)
        super().__init__(nn.Sequential(layers), num_classes, mean, std)
