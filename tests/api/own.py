"""A network that knows nothing of this package, and what is compared of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4


FAST = {"epochs": 1, "device": "cpu", "precision": "32-true"}


class Own(nn.Module):
    """A network that knows nothing of this package; its second activation is a function."""

    def __init__(self, channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8)
        self.relu, self.dropout, self.fc = nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


def own(**options: Any) -> Own:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Own(**options).eval()


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]
