"""Data sets as uint8 tensors on the device; clean splits; batched augmentation."""

from backdoor_bench.dataset.augmentation import Augmentation
from backdoor_bench.dataset.base import Batches, Data, Dataset, Draws, ImageSet, Manifest
from backdoor_bench.dataset.split import CleanDraw, Regime, draw_clean

__all__ = [
    "Augmentation",
    "Batches",
    "CleanDraw",
    "Data",
    "Dataset",
    "Draws",
    "ImageSet",
    "Manifest",
    "Regime",
    "draw_clean",
]
