"""BatchNorm whose channels can be masked and disturbed while everything else stands still, or all but its statistics.

For what is learned on a throw-away copy (ANP, RNP): :func:`masked_copy`, train, read the masks. For a soft mask that is
the result (NFT): the same with ``track=True``, train, :func:`bake`, and the copy's ``state_dict`` into the network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from backdoor_bench.model import anatomy


class MaskedBatchNorm2d(nn.Module):
    """BatchNorm2d with scale ``gamma * (m + dw)`` and shift ``beta * (1 + db)``; only ``mask`` learns.

    A subclass of BatchNorm2d does whatever else it does (timm's go on with an activation).

    Args:
        inner: the BatchNorm.
        track: whether its running statistics follow the batches in train mode, by its own momentum, as they would
            without a mask. False: they may be left as they are, for a copy of which nobody reads them.

    Attributes:
        mask: m, ``(channels,)``, 1 to start with.
        noise: ``(dw, db)``, ``(channels,)`` each, or None for no disturbance.
    """

    mask: nn.Parameter

    def __init__(self, inner: nn.BatchNorm2d, track: bool = False) -> None:
        super().__init__()
        self.inner, self.track = inner, track
        self.mask = nn.Parameter(torch.ones_like(inner.weight))
        self.noise: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner
        scale: Tensor = inner.weight * self.mask
        shift: Tensor = inner.bias
        if self.noise is not None:
            scale = inner.weight * (self.mask + self.noise[0])
            shift = shift * (1 + self.noise[1])
        if type(inner) is not nn.BatchNorm2d or (self.track and self.training):
            return functional_call(inner, {"weight": scale, "bias": shift}, (x,))  # type: ignore[no-any-return]
        if self.training:
            # Batch statistics alone: nobody reads the running ones.
            return F.batch_norm(x, None, None, scale, shift, True, 0.0, inner.eps)
        return F.batch_norm(x, inner.running_mean, inner.running_var, scale, shift, False, 0.0, inner.eps)


def masked_copy(network: nn.Module, track: bool = False) -> tuple[nn.Module, dict[str, MaskedBatchNorm2d]]:
    """A copy of the network in which each BatchNorm2d has a mask, and only the masks have gradients.

    Args:
        track: whether running statistics move in train mode; see :class:`MaskedBatchNorm2d`.

    Returns:
        The copy, and its masked layers by the names that the BatchNorms have in ``network``.
    """
    twin = copy.deepcopy(network).requires_grad_(False)
    layers = {name: MaskedBatchNorm2d(norm, track) for name, norm in anatomy.batch_norms(twin).items()}
    for name, layer in layers.items():
        twin.set_submodule(name, layer)
    return twin, layers


@torch.no_grad()
def bake(twin: nn.Module, layers: Mapping[str, MaskedBatchNorm2d]) -> nn.Module:
    """The copy without its masks, in place: each gamma times its mask, whatever lies between 0 and 1; noise is dropped.

    It has the network's own modules and parameter names again, so that ``network.load_state_dict(twin.state_dict())``
    brings the masks, and running statistics where they moved.
    """
    for name, layer in layers.items():
        layer.inner.weight.mul_(layer.mask)
        twin.set_submodule(name, layer.inner)
    return twin
