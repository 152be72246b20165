"""Gradients of single images, of a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, func, nn
from torch.nn import functional as F


def squared_gradients(network: nn.Module, names: Sequence[str], images: Tensor, labels: Tensor) -> list[Tensor]:
    """Of each named parameter: the sum over the images of the squared gradient of each one's own cross-entropy.

    All images at once (vmap). In eval mode only: in train mode the loss of an image depends on the others.

    Args:
        images: float (B, 3, H, W) in [0, 1].
        labels: (B,) int64.
    """
    if network.training:
        raise ValueError("the gradient of a single image needs the network in eval mode")
    asked = {name: network.get_parameter(name).detach() for name in names}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = func.functional_call(network, parameters, (image[None],))
        return F.cross_entropy(logits.float(), label[None])

    gradients = func.vmap(func.grad(loss), in_dims=(None, 0, 0))(asked, images, labels)
    return [gradients[name].square().sum(0) for name in names]
