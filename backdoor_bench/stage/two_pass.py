"""Fine-tuning by two gradients per batch, at the weights and beside them: what TSBD's third stage, sharpness-aware
minimisation and gradient-norm penalties share. No method by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.finetune import Finetune


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


class TwoPassFinetune(Finetune):
    """``g1`` at the weights, ``g2`` at the weights plus :meth:`displacement`; the optimiser steps with
    ``(1 - alpha) * g1 + alpha * g2``.

    In place: the weights are moved and put back, bit by bit. BatchNorm's running statistics follow the first pass
    only. A subclass gives the displacement, and :meth:`objective` if it is not the cross-entropy.

    Args:
        alpha: the weight of ``g2``; 0 is plain fine-tuning, 1 is SAM.
        training: as for :class:`Finetune`; a Mask of an earlier stage is obeyed.
    """

    def __init__(self, alpha: float = 1.0, **training: Any) -> None:
        super().__init__(**training)
        if not 0 <= alpha <= 1:
            raise ConfigError(f"alpha={alpha}: expected a fraction in [0, 1]")
        self.alpha = alpha

    @abstractmethod
    def displacement(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """How far each weight is moved before the second pass, from ``g1``; nothing is looked at from the host."""

    def objective(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of either pass."""
        return F.cross_entropy(self.network(images), labels)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        self._batch = images, labels
        return self.objective(images, labels)

    def on_fit_end(self) -> None:
        del self._batch

    def on_after_backward(self) -> None:
        # The first gradient has just been written; the optimiser has not looked yet.
        moved: list[Tensor] = [weight for weight in self.trained_parameters() if weight.grad is not None]
        first = [weight.grad for weight in moved if weight.grad is not None]
        with torch.no_grad():
            # Kept and copied back, not subtracted again: that would leave a rounding error in every weight.
            originals = [weight.clone() for weight in moved]
            torch._foreach_add_(moved, tuple(self.displacement(moved, first)))
        with still_statistics(self.network), self.view.numerics.autocast():
            loss = self.objective(*self._batch)
        second = torch.autograd.grad(loss, moved, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            torch._foreach_copy_(moved, originals)
            torch._foreach_lerp_(first, list(second), self.alpha)
