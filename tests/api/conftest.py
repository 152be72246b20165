"""Images, and a result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import backdoor_bench
from tests.api.own import CLASSES, FAST, own


@pytest.fixture(scope="module")
def images() -> Tensor:
    """40 noisy images of 16x16 whose class is their brightness, float in [0, 1]."""
    draws = torch.Generator().manual_seed(1)
    level = (torch.arange(40) % CLASSES / CLASSES).view(-1, 1, 1, 1)
    return level + torch.rand(40, 3, 16, 16, generator=draws) / CLASSES


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(40) % CLASSES


@pytest.fixture(scope="module")
def bounded(images, labels) -> backdoor_bench.Purified:
    """A network with UNIT's bounds in it, which takes normalised images."""
    return backdoor_bench.purify(own(), images, labels, "unit", mean=[0.4] * 3, std=[0.2] * 3, **FAST)
