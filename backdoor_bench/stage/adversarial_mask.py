"""ANP, step 1: masks of BatchNorm channels that keep the clean loss low under the worst disturbance of their scales and
shifts (Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021, arXiv:2110.14430)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.dataset import Draws
from backdoor_bench.errors import ConfigError
from backdoor_bench.perturbation import Ball, ascend
from backdoor_bench.stage.base import TrainingStage
from backdoor_bench.stage.masked_batch_norm import MaskedBatchNorm2d, masked_copy
from backdoor_bench.stage.output import Scores
from backdoor_bench.stage.view import DefenderView

STEPS_BETWEEN_CHECKS = 100  # of the loss, for NaN


class AdversarialMask(TrainingStage):
    """Scores every BatchNorm channel by a mask in [0, 1], learned on a throw-away copy; low is suspicious.

    Each iteration draws noise from U(-eps, eps) for scales and shifts, moves it ``steps`` times up the cross-entropy by
    ``eps / steps`` along the sign of its gradient, then moves the masks down
    ``alpha * CE(no noise) + (1 - alpha) * CE(noise)`` and clamps them. Batches are drawn with replacement; train mode.

    Args:
        iterations: mini-batches.
        eps, steps, alpha: as above (the paper's Eq. 5 and 6).
        project_noise: keep the noise in [-eps, eps] after each step, as the paper writes; the authors' code does not,
            and with one step it reaches 2 eps.
        training: ``batch_size``, ``optimizer`` (of the masks), ``scheduler``.
    """

    layers: Sequence[MaskedBatchNorm2d]

    def __init__(
        self,
        iterations: int = 2000,
        eps: float = 0.4,
        steps: int = 1,
        alpha: float = 0.2,
        project_noise: bool = False,
        **training: Any,
    ) -> None:
        if iterations < 0 or steps < 0 or eps < 0 or not 0 <= alpha <= 1:
            raise ConfigError(
                f"iterations={iterations}, steps={steps}, eps={eps}, alpha={alpha}: expected numbers from 0 up, and "
                "alpha in [0, 1]"
            )
        # Epochs of equal length, so that there are exactly so many iterations.
        self.steps_per_epoch = math.gcd(iterations, STEPS_BETWEEN_CHECKS)
        super().__init__(epochs=iterations // self.steps_per_epoch, **training)
        self.eps, self.steps, self.alpha = eps, steps, alpha
        self.ball = Ball("linf", eps) if project_noise else None

    def run(self, network: nn.Module, view: DefenderView) -> Scores:
        twin, layers = masked_copy(network)
        self.layers = list(layers.values())
        self._noise_draws = view.generator("noise", view.device)
        history = []
        if self.epochs:
            batches = Draws(view.train, self.batch_size, self.steps_per_epoch, view.generator("order"))
            history = self.train_network(twin, view, batches=batches).loss
        del self.layers
        values = {name: layer.mask.detach().clone() for name, layer in layers.items()}
        masks = torch.cat(list(values.values()))
        summary = torch.stack([masks.min(), masks.mean(), (masks == 0).float().mean()]).tolist()
        report = dict(zip(("smallest_mask", "mean_mask", "share_at_0"), summary, strict=True))
        return Scores(values, report=report | {"loss": history[-1] if history else None, "channels": len(masks)})

    def trained_parameters(self) -> Iterable[nn.Parameter]:
        return [layer.mask for layer in self.layers]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        sizes = [len(layer.mask) for layer in self.layers]
        noise = torch.empty(2, sum(sizes), device=images.device)
        noise.uniform_(-self.eps, self.eps, generator=self._noise_draws)
        for _ in range(self.steps):
            noise.requires_grad_(True)
            self._disturb(noise, sizes)
            # With respect to the noise alone: nothing is added to the masks' gradients.
            (gradient,) = torch.autograd.grad(F.cross_entropy(self.network(images), labels), noise)
            noise = ascend(noise.detach(), gradient, self.eps / self.steps, ball=self.ball)
        self._disturb(noise, sizes)
        noisy = F.cross_entropy(self.network(images), labels)
        self._disturb(None, sizes)
        return self.alpha * F.cross_entropy(self.network(images), labels) + (1 - self.alpha) * noisy

    def _disturb(self, noise: Tensor | None, sizes: list[int]) -> None:
        """Hand each layer its part of ``(2, channels of all layers)``; None: no noise."""
        parts = [None] * len(sizes) if noise is None else [part.unbind() for part in noise.split(sizes, 1)]
        for layer, part in zip(self.layers, parts, strict=True):
            layer.noise = part  # type: ignore[assignment]

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        torch._foreach_clamp_min_([layer.mask for layer in self.layers], 0.0)
        torch._foreach_clamp_max_([layer.mask for layer in self.layers], 1.0)
