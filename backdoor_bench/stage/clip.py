"""Upper bounds behind activations: the module that clips, and the stage that installs given bounds as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model.addition import Addition, attach
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Bounds
from backdoor_bench.stage.view import DefenderView


def clip_above(activations: Tensor, bound: Tensor) -> Tensor:
    """``min(activations, max(bound, 0))``.

    Args:
        activations: (B, C, H, W), or (B, ...) of any rank.
        bound: of an activation's shape without the batch, or with 1 in place of a dimension that it does not tell
            apart: (C, 1, 1) bounds channels,
            (1, D) the features of tokens.

    Returns:
        As ``activations``, same dtype. The gradient reaches ``bound`` where it is the smaller one and positive.

    Raises:
        IncompatibleError: the shapes do not fit, as with images of another size than the bounds were made for.
    """
    shape = activations.shape[1:]
    fits = len(shape) == bound.ndim and all(b in (1, a) for a, b in zip(shape, bound.shape, strict=True))
    if not fits:
        raise IncompatibleError(
            f"activations of shape {tuple(shape)} met bounds of shape {tuple(bound.shape)}; bounds belong to one input "
            "size: use images of the size that the bounds were made for, or bound channels (granularity=channel)"
        )
    return torch.minimum(activations, bound.clamp(min=0).type_as(activations))  # a traced one keeps no dtype of its own


# A leaf of traced graphs: tracing has no shapes to compare.
fx.wrap("clip_above")


class Clip(Addition):
    """``min(inner(x), max(bound, 0))``; ``bound`` has the inner output's shape without the batch, 1 where shared."""

    bound: Tensor

    def __init__(self, inner: nn.Module, shape: Sequence[int]) -> None:
        super().__init__(inner)
        self.register_buffer("bound", torch.full(tuple(shape), torch.inf))

    def settings(self) -> dict[str, Any]:
        return {"shape": list(self.bound.shape)}

    def forward(self, inputs: Tensor) -> Tensor:
        return clip_above(self.inner(inputs), self.bound)


def install(network: nn.Module, bounds: Mapping[str, Tensor]) -> dict[str, Clip]:
    """Put a :class:`Clip` behind each named module, in place, with a copy of its bound in float32."""
    clips = {}
    for site, bound in bounds.items():
        clip = Clip(network.get_submodule(site), bound.shape)
        clip.bound = bound.detach().float().clone()
        clip.train(clip.inner.training)
        attach(network, site, clip)
        clips[site] = clip
    return clips


class ClipActivations(Stage):
    """Install the Bounds of an earlier stage as they are: clipping by statistics alone, UNIT's z-score ablation."""

    def run(self, network: nn.Module, view: DefenderView, bounds: Bounds) -> None:
        install(network, bounds.values)
