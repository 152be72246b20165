"""From scores to a mask: in each layer, the units that stand out by some standard deviations (Zheng, Tang, Li and Liu,
"Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Mask, Scores
from backdoor_bench.stage.prune import units_mask
from backdoor_bench.stage.view import DefenderView


def outstanding(scores: Tensor, u: float) -> Tensor:
    """``s_k > mean(s) + u * std(s)`` over one layer, with the unbiased deviation; never true in a layer of one.

    Args:
        scores: ``(units,)`` float.

    Returns:
        ``(units,)`` bool. Of n units none can pass ``u >= (n - 1) / sqrt(n)``: with u = 3 ten are too few.
    """
    if len(scores) < 2:
        return torch.zeros_like(scores, dtype=torch.bool)
    return scores > scores.mean() + u * scores.std()


class LayerThreshold(Stage):
    """Masks the units whose score is above ``mean + u * std`` of their layer. All layers by the scores as they are.

    Args:
        u: standard deviations above the mean.
        parts: parameters of a masked unit: gamma and beta of a BatchNorm.
    """

    def __init__(
        self, u: float = 3.0, parts: Sequence[str] = ("weight", "bias"), inputs: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(inputs)
        if not parts:
            raise ConfigError("parts=[]: expected the parameters to mask, e.g. [weight,bias]")
        self.u, self.parts = u, tuple(parts)

    def run(self, network: nn.Module, view: DefenderView, scores: Scores) -> Mask:
        pruned = {name: outstanding(values, self.u) for name, values in scores.values.items()}
        counts = torch.stack([units.sum() for units in pruned.values()]).tolist()
        report: dict[str, Any] = {"units": sum(len(units) for units in pruned.values()), "pruned": sum(counts)}
        report |= {f"pruned.{name}": count for name, count in zip(pruned, counts, strict=True) if count}
        return Mask(units_mask(network, pruned, self.parts), report=report)
