"""What a stage decides by: accuracy on clean images that the defender holds."""

from __future__ import annotations

import torch
from torch import nn

from backdoor_bench.dataset import ImageSet
from backdoor_bench.metric import predict
from backdoor_bench.numerics import Numerics

SLACK = 1e-9  # differences of fractions: 1.0 - 0.9 is less than 0.1


def tolerance(drop: float, images: int) -> float:
    """The accuracy that may be lost on so many validation images: ``drop``, or that of one image where it is more.

    On ten images, one per class, a tolerated drop below a tenth would be none at all.
    """
    return max(drop, 1 / images)


def within(before: float, now: float, tolerated: float) -> bool:
    """Whether an accuracy fell by at most ``tolerated``, whatever the rounding of the fractions."""
    return before - now <= tolerated + SLACK


def accuracy(network: nn.Module, data: ImageSet, numerics: Numerics, batch_size: int = 500) -> float:
    """The fraction of ``data`` that the network, put in eval mode and left there, classifies as labelled.

    One look from the host, whatever the number of batches.

    Raises:
        ValueError: ``data`` is empty.
    """
    if not len(data):
        raise ValueError("no images to measure an accuracy on")
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    for predicted, rows in predict(network, data, numerics, batch_size):
        correct += (predicted == data.labels[rows]).sum()
    return int(correct) / len(data)
