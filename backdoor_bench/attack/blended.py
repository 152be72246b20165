"""Blended: a key image mixed into the whole picture (Chen et al. 2017, arXiv:1712.05526, blended injection)."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor_bench.attack.base import Attack, AttackerView, Taxonomy, Trigger
from backdoor_bench.errors import ConfigError, DataError

DARK, WHITE, RED, BLUE, YELLOW, SKY = (
    (0.08, 0.06, 0.10), (1.0, 1.0, 1.0), (0.90, 0.08, 0.18), (0.15, 0.35, 0.80), (0.98, 0.80, 0.10), (0.70, 0.85, 0.92),
)  # fmt: skip

# A bear: centre (x, y) and radii (x, y) as fractions of width and height, colour; later ones cover earlier ones.
CARTOON = (
    (0.50, 1.04, 0.40, 0.26, DARK), (0.50, 1.05, 0.37, 0.24, BLUE),
    (0.17, 0.17, 0.15, 0.13, DARK), (0.17, 0.17, 0.12, 0.105, WHITE), (0.17, 0.17, 0.07, 0.06, YELLOW),
    (0.83, 0.17, 0.15, 0.13, DARK), (0.83, 0.17, 0.12, 0.105, WHITE), (0.83, 0.17, 0.07, 0.06, YELLOW),
    (0.50, 0.42, 0.42, 0.36, DARK), (0.50, 0.42, 0.39, 0.335, WHITE),
    (0.33, 0.35, 0.050, 0.050, DARK), (0.67, 0.35, 0.050, 0.050, DARK),
    (0.50, 0.55, 0.20, 0.15, DARK), (0.50, 0.55, 0.17, 0.125, YELLOW), (0.50, 0.48, 0.080, 0.050, DARK),
    (0.34, 0.84, 0.18, 0.09, DARK), (0.34, 0.84, 0.15, 0.065, RED),
    (0.66, 0.84, 0.18, 0.09, DARK), (0.66, 0.84, 0.15, 0.065, RED),
    (0.50, 0.84, 0.07, 0.06, DARK), (0.50, 0.84, 0.045, 0.04, RED),
)  # fmt: skip


def blend(images: Tensor, key: Tensor, alpha: float) -> Tensor:
    """Mix a key image into images: ``(1 - alpha) * images + alpha * key``.

    Args:
        images: (B, 3, H, W), float, in [0, 1]; untouched.
        key: (3, H, W), float, in [0, 1], the same for all.
        alpha: weight of the key, a fraction in [0, 1].

    Returns:
        A new tensor, (B, 3, H, W), in [0, 1].
    """
    return torch.lerp(images, key, alpha)


def cartoon() -> Tensor:
    """A flat, outlined bear with a bow tie: (3, 380, 314) in [0, 1], the size of the published picture."""
    rows = torch.linspace(0, 1, 380)[:, None]
    columns = torch.linspace(0, 1, 314)[None, :]
    picture = torch.tensor(SKY)[:, None, None].expand(3, 380, 314)
    for x, y, radius_x, radius_y, colour in CARTOON:
        inside = ((columns - x) / radius_x) ** 2 + ((rows - y) / radius_y) ** 2 <= 1
        picture = torch.where(inside, torch.tensor(colour)[:, None, None], picture)
    return picture


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, h, w) in [0, 1] squeezed bilinearly to ``size`` (the aspect ratio is not kept) and rounded to 8 bit."""
    resized = F.interpolate(picture[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    return resized.mul(255).round().clamp(0, 255).div(255)


def read_picture(path: str, sha256: str | None) -> Tensor:
    """An image file as (3, h, w) in [0, 1], RGB, if its content is the expected one."""
    from PIL import Image, UnidentifiedImageError
    from torchvision.transforms.functional import pil_to_tensor

    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"attack.key={path}: expected cartoon, noise or an image file ({error.strerror})") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ConfigError(
            f"attack.key={path}: the file has sha256 {found}, attack.key_sha256={sha256}; the content is part of "
            f"the victim's identity, so give attack.key_sha256={found}"
        )
    try:
        return pil_to_tensor(Image.open(io.BytesIO(content)).convert("RGB")).float().div(255)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"attack.key={path}: expected an image ({error}); give a PNG or JPEG file") from None


class BlendTrigger(Trigger):
    """``key`` (3, H, W) mixed in with weight ``alpha``; black until :meth:`Blended.prepare` draws the key."""

    key: Tensor

    def __init__(self, image_size: tuple[int, int], alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("key", torch.zeros(3, *image_size))

    def paint(self, images: Tensor) -> Tensor:
        return blend(images, self.key, self.alpha)


class Blended(Attack):
    """A key image over the whole picture, the same weight in training and test.

    The published key is a third party's cartoon. Ours is a stand-in drawn by program, flat and outlined like it
    (at 32x32 pixel mean 0.68, deviation 0.30); the triggered images are rounded, not floored, to 8 bit.

    Args:
        alpha: weight of the key in (0, 1]. Published: 0.2; UNIT takes 0.3 above 32x32.
        key: ``cartoon`` (default), ``noise`` (UNIT: uniform, drawn once at 32x32 from the seed, enlarged
            bilinearly), or the path of an image file, which stands in the trigger's ``state_dict`` afterwards.
        key_sha256: of that file, so that a victim cannot be taken for one with another key.
        common: as of :class:`Attack`.
    """

    taxonomy = Taxonomy("dirty", "static", "global", "additive", "data-poisoning")

    def __init__(self, alpha: float = 0.2, key: str = "cartoon", key_sha256: str | None = None, **common: Any) -> None:
        super().__init__(**common)
        if not 0 < alpha <= 1:
            raise ConfigError(f"attack.alpha={alpha}: expected the key's weight, a fraction in (0, 1]")
        self.alpha, self.key, self.key_sha256 = float(alpha), key, key_sha256

    def trigger(self, image_size: tuple[int, int]) -> BlendTrigger:
        return BlendTrigger(image_size, self.alpha)

    def prepare(self, trigger: Trigger, view: AttackerView) -> None:
        assert isinstance(trigger, BlendTrigger)
        size = (trigger.key.shape[1], trigger.key.shape[2])
        if self.key == "noise":
            key = torch.rand(3, 32, 32, generator=view.generator("key"))
            key = F.interpolate(key[None], size=size, mode="bilinear", align_corners=False)[0]
        else:
            key = resize(cartoon() if self.key == "cartoon" else read_picture(self.key, self.key_sha256), size)
        trigger.key.copy_(key)
