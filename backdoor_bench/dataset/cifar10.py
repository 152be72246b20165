"""CIFAR-10 (Krizhevsky 2009)."""

from __future__ import annotations

from typing import Any

from backdoor_bench.dataset.cifar import Cifar

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar10(Cifar):
    """Ten classes. Torchvision's files are ``DATA_DIR/cifar-10-batches-py``."""

    version = 1
    title = "CIFAR-10"
    classes = CLASSES
    folder = "cifar-10-batches-py"
    archive = "cifar-10-python.tar.gz"

    @staticmethod
    def torchvision_class() -> Any:
        from torchvision.datasets import CIFAR10

        return CIFAR10
