"""From scores to a mask by a threshold that accuracy on held-out clean images allows; gammas below it are pruned (Wu
and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021, arXiv:2110.14430)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from backdoor_bench import progress
from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Mask, Scores
from backdoor_bench.stage.prune import units_mask, write
from backdoor_bench.stage.validation import accuracy, within
from backdoor_bench.stage.view import DefenderView

Choice = Literal["val_acc", "fixed", "fixed_count"]


def grid(highest: float, step: float) -> list[float]:
    """0, step, 2 * step, ..., up to and with ``highest``; written as decimals, so that 3 * 0.05 is 0.15."""
    return [round(number * step, 10) for number in range(int(highest / step + 1e-9) + 1)]


def largest_within(accuracies: Sequence[float], before: float, max_drop: float, relative: bool = True) -> int | None:
    """The last position whose accuracy is at most ``max_drop`` below ``before``, or ``max_drop * before`` if that is
    relative; None if there is none.
    """
    for position in reversed(range(len(accuracies))):
        if within(before, accuracies[position], max_drop * before if relative else max_drop):
            return position
    return None


class ThresholdSweep(Stage):
    """Prunes the units with a score of at most a threshold: writes zeros, and returns the Mask.

    Of a BatchNorm's channel the gamma becomes 0 and the beta stays. The published code picks the threshold with the
    lowest attack success rate on the triggered test set; a defender has no such thing.

    Args:
        choose: ``val_acc``: the largest threshold of the grid 0, ``step``, ..., ``highest`` whose accuracy on the
            validation images is at most ``max_drop`` below that of the network; none, if none is.
            ``fixed``: ``threshold``. ``fixed_count``: the ``count`` lowest scores, of equal ones the first.
        parts: the parameters of a pruned unit that become 0.
        relative: ``max_drop`` is a share of the network's accuracy (ANP); else it is in accuracy (RNP).
    """

    version = 2

    def __init__(
        self,
        choose: Choice = "val_acc",
        max_drop: float = 0.1,
        highest: float = 0.9,
        step: float = 0.05,
        threshold: float = 0.2,
        count: int | None = None,
        parts: Sequence[str] = ("weight",),
        relative: bool = True,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(inputs)
        if choose not in ("val_acc", "fixed", "fixed_count"):
            raise ConfigError(f"choose={choose}: expected val_acc, fixed or fixed_count")
        if not 0 <= max_drop <= 1 or step <= 0 or highest < 0:
            raise ConfigError(
                f"max_drop={max_drop}, highest={highest}, step={step}: expected a fraction in [0, 1], and a grid of "
                "thresholds such as 0, 0.05, ..., 0.9 (highest=0.9, step=0.05)"
            )
        if choose == "fixed_count" and (count is None or count < 0):
            raise ConfigError(f"count={count}: choose=fixed_count needs the number of units to prune, e.g. count=50")
        self.uses_validation = choose == "val_acc"  # type: ignore[misc]
        self.choose, self.max_drop, self.thresholds = choose, max_drop, grid(highest, step)
        self.threshold, self.count, self.parts, self.relative = threshold, count, tuple(parts), relative

    @torch.no_grad()
    def run(self, network: nn.Module, view: DefenderView, scores: Scores) -> Mask:
        sizes = [len(values) for values in scores.values.values()]
        flat = torch.cat(list(scores.values.values()))

        def mask_of(pruned: Tensor) -> dict[str, Tensor]:
            return units_mask(network, dict(zip(scores.values, pruned.split(sizes), strict=True)), self.parts)

        report: dict[str, float | int | str | bool | None] = {"units": len(flat)}
        if self.choose == "fixed_count":
            assert self.count is not None
            if self.count > len(flat):
                raise ConfigError(f"count={self.count}: the network has {len(flat)} units; use that many or fewer")
            pruned = torch.zeros_like(flat, dtype=torch.bool)
            pruned[flat.argsort(stable=True)[: self.count]] = True
        elif self.choose == "fixed":
            pruned = flat <= self.threshold
            report["threshold"] = self.threshold
        else:
            pruned, found = self._by_accuracy(network, view, flat, mask_of)
            report |= found
        mask = mask_of(pruned)
        write(network, mask)
        return Mask(mask, report=report | {"pruned": int(pruned.sum())})

    def _by_accuracy(
        self, network: nn.Module, view: DefenderView, flat: Tensor, mask_of: Callable[[Tensor], dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, float | None]]:
        """What to prune of all units, and what was measured; the network is put back as it was."""
        before = measured = accuracy(network, view.validation, view.numerics)
        named = mask_of(torch.zeros_like(flat, dtype=torch.bool))
        originals = {name: network.get_parameter(name).detach().clone() for name in named}
        levels = torch.tensor(self.thresholds, dtype=flat.dtype, device=flat.device)
        counts = (flat <= levels[:, None]).sum(1).tolist()
        accuracies: list[float] = []
        with progress.track(f"{view.stage}: thresholds", len(levels), "threshold") as advance:
            for position, level in enumerate(levels):
                # The sets grow, so each is written on top of the last; one that did not grow is not measured again.
                if counts[position] > (counts[position - 1] if position else 0):
                    write(network, mask_of(flat <= level))
                    measured = accuracy(network, view.validation, view.numerics)
                accuracies.append(measured)
                advance(f"accuracy {measured:.3f}")
        for name, original in originals.items():
            network.get_parameter(name).copy_(original)
        chosen = largest_within(accuracies, before, self.max_drop, self.relative)
        pruned = torch.zeros_like(flat, dtype=torch.bool) if chosen is None else flat <= levels[chosen]
        return pruned, {
            "threshold": None if chosen is None else self.thresholds[chosen],
            "validation_accuracy_before": before,
            "validation_accuracy": before if chosen is None else accuracies[chosen],
            "validation_images": len(view.validation),
        }
