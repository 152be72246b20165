"""What the residual networks for small images share: four groups of blocks, the later three at half the size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from backdoor_bench.errors import ConfigError

Block = Callable[[int, int, int], nn.Module]
"""Makes a block of (channels in, channels out, stride)."""


def require_size(blocks: Sequence[int], width: int) -> None:
    """Raise ConfigError where ``blocks`` is not four positive numbers, or ``width`` is not positive."""
    if len(blocks) != 4 or min(blocks) < 1 or width < 1:
        raise ConfigError(
            f"model.blocks={list(blocks)}, model.width={width}: expected four numbers of blocks and a width, all "
            "positive, e.g. model.blocks=[1,1,1,1] model.width=16"
        )


def groups(block: Block, blocks: Sequence[int], width: int) -> dict[str, nn.Module]:
    """``layer1`` to ``layer4`` of ``blocks`` blocks each, widths ``width * (1, 2, 4, 8)``; see :func:`require_size`."""
    layers: dict[str, nn.Module] = {}
    inputs = width
    for number, count in enumerate(blocks, start=1):
        outputs = width * 2 ** (number - 1)
        first = block(inputs, outputs, 1 if number == 1 else 2)
        layers[f"layer{number}"] = nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(count - 1)))
        inputs = outputs
    return layers


def classifier(width: int, num_classes: int) -> dict[str, nn.Module]:
    """Global average pool and ``linear``, behind :func:`groups` of that width."""
    return {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "linear": nn.Linear(8 * width, num_classes),
    }
