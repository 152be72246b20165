"""Pictures of a trigger: a few test images clean, triggered, and what changed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from backdoor_bench.attack import Trigger
from backdoor_bench.numerics import Numerics

COUNT = 8
GAIN = 5
TITLE = "trigger (clean, triggered, residual x5)"


def of_trigger(stored: Tensor, trigger: Trigger, numerics: Numerics) -> Tensor:
    """(3, H, W) in [0, 1]: a row of clean images, the same triggered, and the residual times five around grey."""
    clean = numerics.images(stored[:COUNT].to(numerics.device))
    with torch.inference_mode():
        triggered = trigger(clean)
    residual = ((triggered - clean) * GAIN + 0.5).clamp(0, 1)
    return make_grid(torch.cat([clean, triggered, residual]), nrow=len(clean)).cpu()


def keep(path: Path, stored: Tensor, trigger: Trigger, numerics: Numerics) -> None:
    """The same as a PNG file, once per victim."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(of_trigger(stored, trigger, numerics), path)
