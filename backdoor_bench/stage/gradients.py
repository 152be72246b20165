"""Which tensors a gradient is computed for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def gradients_for(network: nn.Module, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block, gradients are computed for ``tensors`` and for none of the network's parameters."""
    asked = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.requires_grad_(False)
    for tensor in tensors:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)
        for parameter, flag in asked.items():
            parameter.requires_grad_(flag)
