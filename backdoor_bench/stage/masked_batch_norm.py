"""BatchNorm whose channels can be masked and disturbed while everything else stands still."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from backdoor_bench.model import anatomy


class MaskedBatchNorm2d(nn.Module):
    """BatchNorm2d with scale ``gamma * (m + dw)`` and shift ``beta * (1 + db)``; only ``mask`` learns.

    A subclass of BatchNorm2d does whatever else it does (timm's go on with an activation).

    Attributes:
        mask: m, ``(channels,)``, 1 to start with.
        noise: ``(dw, db)``, ``(channels,)`` each, or None for no disturbance.
    """

    mask: nn.Parameter

    def __init__(self, inner: nn.BatchNorm2d) -> None:
        super().__init__()
        self.inner = inner
        self.mask = nn.Parameter(torch.ones_like(inner.weight))
        self.noise: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner
        scale: Tensor = inner.weight * self.mask
        shift: Tensor = inner.bias
        if self.noise is not None:
            scale = inner.weight * (self.mask + self.noise[0])
            shift = shift * (1 + self.noise[1])
        if type(inner) is not nn.BatchNorm2d:
            return functional_call(inner, {"weight": scale, "bias": shift}, (x,))  # type: ignore[no-any-return]
        if self.training:
            # Batch statistics alone: on a throw-away copy nobody reads the running ones.
            return F.batch_norm(x, None, None, scale, shift, True, 0.0, inner.eps)
        return F.batch_norm(x, inner.running_mean, inner.running_var, scale, shift, False, 0.0, inner.eps)


def masked_copy(network: nn.Module) -> tuple[nn.Module, dict[str, MaskedBatchNorm2d]]:
    """A copy of the network in which each BatchNorm2d has a mask, and only the masks have gradients.

    Returns:
        The copy, and its masked layers by the names that the BatchNorms have in ``network``.
    """
    twin = copy.deepcopy(network).requires_grad_(False)
    layers = {name: MaskedBatchNorm2d(norm) for name, norm in anatomy.batch_norms(twin).items()}
    for name, layer in layers.items():
        twin.set_submodule(name, layer)
    return twin, layers
