"""TSBD, stage 3: activeness-aware fine-tuning, with a penalty on the gradient's norm (Lin et al., "Unveiling and
Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and Backdoor Activeness", NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.finetune import Finetune


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


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Inside the block BatchNorm in train mode uses batch statistics and leaves its running ones alone."""
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


class ActivenessFinetune(Finetune):
    """Descend ``CE + lambda * ||grad CE||_2`` by two gradients per batch, with ``alpha = lambda / r``.

    ``g1`` at the weights, ``g2`` at the weights plus ``r * g1 / ||g1||_2``; the optimiser steps with
    ``(1 - alpha) * g1 + alpha * g2``. BatchNorm's running statistics follow the first pass only (the paper is silent;
    the authors' code updates them by a third forward of the new weights). Order shuffled, as the paper's sampled
    mini-batches; the authors keep one fixed order.

    Args:
        radius: the paper's ``r``, the length of the perturbation.
        alpha: the weight of ``g2``; 0 is plain fine-tuning, 1 is SAM.
        norm: ``global`` or ``per_tensor``, see :func:`perturbation`.
        training: as for :class:`Finetune`; a Mask of an earlier stage is obeyed.
    """

    def __init__(
        self,
        radius: float = 0.05,
        alpha: float = 0.7,
        norm: Literal["global", "per_tensor"] = "global",
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if radius <= 0 or not 0 <= alpha <= 1:
            raise ConfigError(f"radius={radius}, alpha={alpha}: expected a positive length and a fraction in [0, 1]")
        if norm not in ("global", "per_tensor"):
            raise ConfigError(f"norm={norm}: expected global or per_tensor")
        self.radius, self.alpha, self.norm = radius, alpha, norm

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        self._batch = images, labels
        return super().loss(images, labels)

    def on_fit_end(self) -> None:
        del self._batch

    def on_after_backward(self) -> None:
        # The first gradient has just been written; the optimiser has not looked yet.
        images, labels = self._batch
        moved: list[Tensor] = [weight for weight in self.trained_parameters() if weight.grad is not None]
        first = [weight.grad for weight in moved if weight.grad is not None]
        with torch.no_grad():
            # Kept and copied back, not subtracted again: that would leave a rounding error in every weight.
            originals = [weight.clone() for weight in moved]
            torch._foreach_add_(moved, tuple(perturbation(first, self.radius, self.norm)))
        with still_statistics(self.network), self.view.numerics.autocast():
            loss = F.cross_entropy(self.network(images), labels)
        second = torch.autograd.grad(loss, moved, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            torch._foreach_copy_(moved, originals)
            torch._foreach_lerp_(first, list(second), self.alpha)
