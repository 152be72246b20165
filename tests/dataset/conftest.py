"""Small trees of images on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backdoor_bench import progress

Said = list[str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """What the person was told."""
    lines: Said = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


def pixels(height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def grow() -> Callable[..., Path]:
    """``grow(root, names)``: three training images and two test images for each class, all different noise."""

    def make(root: Path, names: Iterable[str], suffix: str = "png", size: tuple[int, int] = (32, 32)) -> Path:
        for c, name in enumerate(names):
            for split, count in (("train", 3), ("test", 2)):
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    image = Image.fromarray(pixels(*size, seed=1000 * c + 10 * i + (split == "test")))
                    image.save(folder / f"{i:04d}.{suffix}")
        return root

    return make
