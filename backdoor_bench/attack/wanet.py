"""WaNet: a smooth, sub-pixel warp, trained with a noise mode (Nguyen and Tran 2021, arXiv:2102.10369)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor_bench.attack.base import Attack, AttackerView, Poisoned, Taxonomy, Trigger, stamp
from backdoor_bench.attack.image_draws import image_draws
from backdoor_bench.attack.rows import split_rows
from backdoor_bench.dataset import Augmentation, ImageSet
from backdoor_bench.errors import ConfigError
from backdoor_bench.numerics import Numerics


def identity_grid(image_size: tuple[int, int]) -> Tensor:
    """(1, H, W, 2): where each pixel lies in [-1, 1], the column's coordinate first, corners at -1 and 1."""
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in image_size), indexing="ij")
    return torch.stack([columns, rows], dim=-1)[None]


def control_field(control_points: int, generator: torch.Generator) -> Tensor:
    """(1, 2, k, k): uniform in [-1, 1], divided by its mean magnitude, which becomes 1."""
    field = torch.rand(1, 2, control_points, control_points, generator=generator) * 2 - 1
    return field / field.abs().mean()


def warping_grid(field: Tensor, image_size: tuple[int, int], strength: float) -> Tensor:
    """The sampling grid of the backdoor: ``clamp(identity + strength * field / side, -1, 1)``.

    Args:
        field: (1, 2, k, k), displacements (x, y) at the control points, enlarged bicubically to H x W.
        image_size: (H, W); x is divided by W, y by H. A magnitude of 1 moves by about strength / 2 pixels.
        strength: s of the paper.

    Returns:
        (1, H, W, 2), coordinates in [-1, 1] as :func:`identity_grid` has them.
    """
    height, width = image_size
    smooth = F.interpolate(field, size=image_size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return (identity_grid(image_size) + strength * smooth / torch.tensor([width, height])).clamp(-1, 1)


def jitter(grid: Tensor, uniform: Tensor) -> Tensor:
    """The noise mode's grids: each coordinate moves by up to half a pixel, independently.

    Args:
        grid: (1, H, W, 2), the backdoor's.
        uniform: (B, H, W, 2), in [-1, 1].

    Returns:
        (B, H, W, 2), in [-1, 1].
    """
    _, height, width, _ = grid.shape
    return (grid + torch.stack([uniform[..., 0] / width, uniform[..., 1] / height], dim=-1)).clamp(-1, 1)


def warp(images: Tensor, grid: Tensor) -> Tensor:
    """Sample (B, 3, H, W) images in [0, 1] bilinearly at ``grid``, (B or 1, H, W, 2); float32 also inside autocast."""
    with torch.autocast(images.device.type, enabled=False):
        grid = grid.float().expand(len(images), -1, -1, -1)
        return F.grid_sample(images.float(), grid, align_corners=True).clamp(0, 1)  # weights may sum to 1 + 1e-7


class WarpTrigger(Trigger):
    """The same warp for every image. ``grid`` (1, H, W, 2) is the identity until :meth:`WaNet.prepare` draws it."""

    grid: Tensor

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("grid", identity_grid(image_size))

    def paint(self, images: Tensor) -> Tensor:
        return warp(images, self.grid)


class WaNet(Attack):
    """Each step warps the first rows of its shuffled batch, and jitters the next rows without changing their labels.

    ``poisoning_ratio * B`` is rounded up or down at random so that its mean is exact (the reference floors it:
    12 of 128 at 0.1). Then the whole batch is augmented: crop with padding 5 (80 % of the images), rotation up to
    10 degrees (50 %), the data set's flip; whether and how is drawn per image (BackdoorBench: one draw for the batch),
    and what comes in from outside is black (the reference: the mean colour). The optimiser and schedule are the data
    set's recipe; the reference's constant rate of 0.01 for the first 100 epochs is an override of it. The last epoch
    is kept. Measured besides, as the authors do: ``noise_acc``, the accuracy on noise-mode test images, whose labels
    are the true ones (each image brings its noise along, so it is the same for every victim), and ``float_asr``, their
    ASR. Rounded to 8 bits, a warp of a quarter of a pixel loses part of what the network was trained to see: on GTSRB,
    width 16, 60 epochs, ASR is 84 % of rounded and 99 % of float images.

    Args:
        control_points: k, the control field is k x k.
        strength: s, the warp's size; the displacement in pixels does not grow with the image.
        cross_ratio: noise-mode rows for each backdoor row (0: no noise mode).
        common: as of :class:`Attack`.
    """

    version = 2  # 1 rotated by coordinates in bfloat16
    trains_unrounded = True
    taxonomy = Taxonomy("dirty", "dynamic", "global", "warping", "outsourced-training")

    def __init__(self, control_points: int = 4, strength: float = 0.5, cross_ratio: float = 2.0, **common: Any) -> None:
        super().__init__(**common)
        if control_points < 2:
            raise ConfigError(f"attack.control_points={control_points}: expected at least 2 by side")
        if strength < 0 or cross_ratio < 0:
            raise ConfigError(f"attack.strength={strength}, attack.cross_ratio={cross_ratio}: expected 0 or more")
        if self.poisoning_ratio * (1 + cross_ratio) > 1:
            raise ConfigError(
                f"attack.poisoning_ratio={self.poisoning_ratio} with attack.cross_ratio={cross_ratio} needs "
                f"{self.poisoning_ratio * (1 + cross_ratio):.2f} of each batch; lower one of them"
            )
        self.control_points, self.strength, self.cross_ratio = control_points, float(strength), float(cross_ratio)

    def trigger(self, image_size: tuple[int, int]) -> WarpTrigger:
        return WarpTrigger(image_size)

    def prepare(self, trigger: Trigger, view: AttackerView) -> None:
        assert isinstance(trigger, WarpTrigger)
        size = (trigger.grid.shape[1], trigger.grid.shape[2])
        field = control_field(self.control_points, view.generator("grid"))
        trigger.grid.copy_(warping_grid(field, size, self.strength))

    def poison(self, view: AttackerView, trigger: Trigger) -> Poisoned:
        return Poisoned(view.train, None, self.poisoning_ratio)

    def augmentation(self, dataset: Augmentation) -> Augmentation:
        return replace(dataset, crop_padding=5, crop_probability=0.8, rotation=10.0, rotation_probability=0.5)

    def test_sets(
        self, test: ImageSet, trigger: Trigger, num_classes: int, numerics: Numerics
    ) -> Mapping[str, ImageSet]:
        assert isinstance(trigger, WarpTrigger)
        grid = trigger.grid

        def noisy(images: Tensor) -> Tensor:
            _, height, width, _ = grid.shape
            uniform = image_draws(images, height * width * 2, "wanet: the noise mode").view(-1, height, width, 2)
            return warp(images, jitter(grid, uniform * 2 - 1))

        return {"noise_acc": ImageSet(stamp(noisy, test.images, numerics), test.labels)}

    def training_batch(
        self, images: Tensor, labels: Tensor, trigger: Trigger, num_classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(trigger, WarpTrigger)
        height, width = images.shape[2:]
        rows = split_rows(len(images), self.poisoning_ratio, self.cross_ratio, generator, images.device)
        uniform = torch.rand(rows.most, height, width, 2, generator=generator, device=generator.device) * 2 - 1
        shown = slice(rows.most)
        grids = jitter(trigger.grid, uniform.to(images.device) * ~rows.backdoor[shown, None, None, None])
        painted = torch.where(rows.touched[shown, None, None, None], warp(images[shown], grids), images[shown])
        labels = torch.where(rows.backdoor, self.attack_labels(labels, num_classes), labels)
        return torch.cat([painted, images[rows.most :]]), labels
