"""TSBD, stage 3: activeness-aware fine-tuning, with a penalty on the gradient's norm (Lin et al., "Unveiling and
Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and Backdoor Activeness", NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.two_pass import TwoPassFinetune


def perturbation(gradients: Sequence[Tensor], radius: float, norm: str = "global") -> list[Tensor]:
    """``r * g / ||g||_2`` for the gradients of all parameters; zero where the norm is.

    ``global``: one norm over all of them (the paper); ``per_tensor``: each by its own (the authors' code), which moves
    the weights by ``r * sqrt(tensors)`` in all. The norms stay on the device.
    """
    norms = torch.stack(torch._foreach_norm(list(gradients)))
    if norm == "global":
        norms = torch.linalg.vector_norm(norms).expand(len(gradients))
    scales = radius / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return [gradient * scale for gradient, scale in zip(gradients, scales.unbind(), strict=True)]


class ActivenessFinetune(TwoPassFinetune):
    """Descend ``CE + lambda * ||grad CE||_2`` by two gradients per batch, with ``alpha = lambda / r``.

    The second is taken at the weights plus ``r * g1 / ||g1||_2``, see :class:`TwoPassFinetune`. On BatchNorm's running
    statistics the paper is silent; the authors' code updates them by a third forward of the new weights. Order
    shuffled, as the paper's sampled mini-batches; the authors keep one fixed order.

    Args:
        radius: the paper's ``r``, the length of the perturbation.
        alpha: the weight of the second gradient.
        norm: ``global`` or ``per_tensor``, see :func:`perturbation`. With the 54 tensors of PreActResNet18 the
            authors' code moves the weights seven times as far as the paper's formula.
        training: as for :class:`Finetune`; a Mask of an earlier stage is obeyed.
    """

    def __init__(
        self,
        radius: float = 0.05,
        alpha: float = 0.7,
        norm: Literal["global", "per_tensor"] = "global",
        **training: Any,
    ) -> None:
        super().__init__(alpha, **training)
        if radius <= 0:
            raise ConfigError(f"radius={radius}: expected a positive length")
        if norm not in ("global", "per_tensor"):
            raise ConfigError(f"norm={norm}: expected global or per_tensor")
        self.radius, self.norm = radius, norm

    def displacement(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        return perturbation(gradients, self.radius, self.norm)
