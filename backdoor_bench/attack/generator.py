"""What attacks with a learned trigger are built from: a U-Net that paints noise, a low-pass by DCT, a blur."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix: (size, size) float64, row k is the k-th frequency; ``D @ D.T`` is 1."""
    position = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * torch.outer(position, position + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def low_pass_matrix(size: int, ratio: float) -> Tensor:
    """DCT, drop all but the first ``int(ratio * size)`` frequencies, inverse DCT: a symmetric (size, size) float32.

    The 2-D transform is separable, so a low-pass of (..., H, W) is ``low_pass_matrix(H) @ x @ low_pass_matrix(W)``;
    see :func:`low_pass`.
    """
    kept = dct_matrix(size)[: int(ratio * size)]
    return (kept.T @ kept).float()


def low_pass(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Keep the low frequencies of (B, C, H, W) float32: ``rows`` (H, H) and ``columns`` (W, W) as made above.

    Half precision would lose the small coefficients: call it outside autocast.
    """
    return rows @ images @ columns


def blur_taps(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The outer and the middle weight of a Gaussian of three taps, in pixels: ``2 * outer + middle = 1``."""
    outer = torch.exp(-0.5 / sigma.square())
    total = 1 + 2 * outer
    return outer / total, 1 / total


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """A 3x3 Gaussian with reflected borders over (B, C, H, W). ``sigma``: (B,) or (1,), pixels, one per image."""
    outer, middle = (tap.view(-1, 1, 1, 1) for tap in blur_taps(sigma))
    x = F.pad(images, (1, 1, 1, 1), mode="reflect")
    x = outer * (x[:, :, :-2] + x[:, :, 2:]) + middle * x[:, :, 1:-1]
    return outer * (x[..., :-2] + x[..., 2:]) + middle * x[..., 1:-1]


class _Level(nn.Sequential):
    """Two 3x3 convolutions; ``normalise`` puts an InstanceNorm between them. What surrounds them is the U-Net's."""

    def __init__(self, inputs: int, between: int, outputs: int, stride: int = 1, normalise: bool = True) -> None:
        norm = [nn.InstanceNorm2d(between)] if normalise else []
        super().__init__(
            nn.Conv2d(inputs, between, 3, stride, padding=1), *norm, nn.LeakyReLU(0.2),
            nn.Conv2d(between, outputs, 3, padding=1),
        )  # fmt: skip


class UNet(nn.Module):
    """COMBAT's generator: (B, 3, H, W) in [-1, 1] to (B, 3, H, W) in [-1, 1], four levels down and four up.

    9,370,243 parameters at the published ``width=64``. InstanceNorm has neither weights nor running statistics, so
    train and eval mode are the same and an image's result does not depend on its batch. The published activations
    work in place, which makes the skip connections carry activated maps; here they do so explicitly.

    H and W must be divisible by 16 and at least 32: at 16 the lowest map is one pixel, which has no variance.
    """

    MULTIPLE, SMALLEST = 16, 32

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList([
            _Level(3, w, w, 2, normalise=False), _Level(w, 2 * w, 2 * w, 2),
            _Level(2 * w, 4 * w, 4 * w, 2), _Level(4 * w, 8 * w, 8 * w, 2),
        ])  # fmt: skip
        self.up = nn.ModuleList([
            _Level(8 * w, 8 * w, 4 * w), _Level(4 * w, 4 * w, 2 * w), _Level(2 * w, 2 * w, w), _Level(w, w, 3),
        ])  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        x, skips = images, []
        for level in self.down:
            x = F.instance_norm(level(x))
            skips.append(F.leaky_relu(x, 0.2))
            x = skips[-1] if len(skips) < len(self.down) else x
        for level, skip in zip(self.up, [*skips[-2::-1], None], strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = level(F.leaky_relu(x, 0.2))
            if skip is not None:
                x = F.instance_norm(x) + skip
        return x.tanh()
