"""Adversarial perturbations by gradient steps (PGD: Madry, Makelov, Schmidt, Tsipras and Vladu, ICLR 2018,
arXiv:1706.06083), for attacks and stages: bounded or not, of each image its own or one for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from backdoor_bench.errors import ConfigError, unknown

Norm = Literal["linf", "l2", "l1"]
Rule = Literal["sign", "unit", "raw"]


@dataclass(frozen=True)
class Ball:
    """Perturbations of a norm of at most ``radius``; of each its own norm, over all but the first dimension."""

    norm: Norm
    radius: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise unknown("norm", str(self.norm), get_args(Norm))
        if not self.radius >= 0:
            raise ConfigError(f"a radius of {self.radius}: expected 0 or more, in units of pixels in [0, 1]")

    def project(self, perturbations: Tensor) -> Tensor:
        """The nearest within for ``linf`` (clamped) and ``l2`` (scaled down); for ``l1`` scaled down, too."""
        if self.norm == "linf":
            return perturbations.clamp(-self.radius, self.radius)
        size = _sizes(perturbations, 2 if self.norm == "l2" else 1)
        return perturbations * (self.radius / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1)


def ascend(
    perturbations: Tensor, gradient: Tensor, length: float, rule: Rule = "sign", ball: Ball | None = None
) -> Tensor:
    """One step up: ``project(perturbations + length * direction)``, in a new tensor.

    Args:
        length: of the step; negative: down.
        rule: what the direction is. ``sign``: of the gradient; ``unit``: the gradient at length 1, of each perturbation
            its own; ``raw``: the gradient as it is.
        ball: what is not left; None: no bound.
    """
    if rule not in get_args(Rule):
        raise unknown("rule", str(rule), get_args(Rule))
    if rule == "sign":
        gradient = gradient.sign()
    elif rule == "unit":
        gradient = gradient / _sizes(gradient, 2).clamp(min=torch.finfo(gradient.dtype).tiny)
    moved = perturbations + length * gradient
    return moved if ball is None else ball.project(moved)


def perturb(
    objective: Callable[[Tensor], Tensor],
    images: Tensor,
    steps: int,
    length: float,
    rule: Rule = "sign",
    ball: Ball | None = None,
    start: Tensor | None = None,
    clip: bool = False,
) -> Tensor:
    """Perturbations that raise ``objective(images + perturbations)``, by ``steps`` of :func:`ascend`.

    No parameter collects a gradient, and networks stay in the mode that they are in: put yours in eval mode first
    unless its batch statistics shall count. The objective is called in the precision of its surroundings; inside
    :meth:`TrainingStage.loss` that is the stage's, elsewhere call networks in ``numerics.autocast()``. For all of a
    data set one perturbation: a step for each batch, from where the last one ended.

    Args:
        objective: from perturbed images, float (B, 3, H, W), to a scalar. To lower a loss, return its negative. One
            that shall see no value outside [0, 1], without a bound on the perturbations, clamps them itself.
        images: float (B, 3, H, W) in [0, 1].
        start: (B, 3, H, W), or (1, 3, H, W) for one perturbation that all images share; None: zeros, of each image its
            own. Its first step starts there as it is, bounds or not.
        clip: keep ``images + perturbations`` in [0, 1] after each step; each image needs its own for that.

    Returns:
        The perturbations, of the shape of ``start``, float32, without gradient.
    """
    found = torch.zeros_like(images) if start is None else start.detach()
    if clip and found.shape != images.shape:
        raise ValueError(
            f"clip needs a perturbation for each image, got {tuple(found.shape)} for {tuple(images.shape)}"
        )
    images = images.detach()
    for _ in range(steps):
        with torch.enable_grad():
            found = found.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(objective(images + found), found)
        found = ascend(found.detach(), gradient, length, rule, ball)
        if clip:
            found = (images + found).clamp(0, 1) - images
    return found.detach()


def _sizes(perturbations: Tensor, order: int) -> Tensor:
    """The norm of each, shaped so that it multiplies them."""
    rest = tuple(range(1, perturbations.ndim))
    return torch.linalg.vector_norm(perturbations, order, dim=rest, keepdim=True)
