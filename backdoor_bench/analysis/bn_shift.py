"""BatchNorm's statistics and parameters of a clean, a backdoored and purified networks (UniBP, Figs. 3 and 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from backdoor_bench.analysis.base import Finding
from backdoor_bench.analysis.study import Study
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model import anatomy
from backdoor_bench.report.figure import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTITIES = {"mean": "running mean", "variance": "running variance", "gamma": "gamma", "beta": "beta"}
BINS = 40


def statistics(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Layer to ``mean``, ``variance``, ``gamma`` and ``beta``, (channels,) each, of every BatchNorm2d.

    Raises:
        IncompatibleError: there is none.
    """
    found = {}
    for name, norm in anatomy.batch_norms(network).items():
        parts = zip(QUANTITIES, (norm.running_mean, norm.running_var, norm.weight, norm.bias), strict=True)
        found[name] = {quantity: part.detach().float().cpu() for quantity, part in parts if part is not None}
    if not found:
        raise IncompatibleError(f"{type(network).__name__} has no BatchNorm2d whose statistics could shift")
    return found


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The first Wasserstein distance of two sets of values: how far the mean value moves from one to the other."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(ours.numpy(), theirs.numpy()))


@dataclass(frozen=True)
class BnShift(Finding):
    """``networks``: what it is (``clean network``, ``victim``, a defense) to its :func:`statistics`."""

    networks: Mapping[str, Mapping[str, Mapping[str, Tensor]]]
    sees_trigger = False

    def pooled(self, name: str, quantity: str) -> Tensor:
        return torch.cat([layer[quantity] for layer in self.networks[name].values()])

    def summary(self) -> dict[str, Any]:
        others = [name for name in self.networks if name != style.CLEAN]
        far = {name: {quantity: distance(self.pooled(name, quantity), self.pooled(style.CLEAN, quantity))
                      for quantity in QUANTITIES} for name in others}  # fmt: skip
        return {"wasserstein_distance_to_the_clean_network": far}

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"network": name, "layer": layer, "channel": channel, **{q: float(values[q][channel]) for q in QUANTITIES}}
            for name, layers in self.networks.items()
            for layer, values in layers.items()
            for channel in range(len(values["gamma"]))
        ]

    def draw(self) -> Figure:
        figure, panels = style.canvas(2, 2, 2.9, 1.9)
        for panel, (quantity, words) in zip([*panels[0], *panels[1]], QUANTITIES.items(), strict=True):
            values = {name: self.pooled(name, quantity).numpy() for name in self.networks}
            low, high = np.quantile(np.concatenate(list(values.values())), [0.005, 0.995])
            edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
            for name, own in values.items():
                how = style.look(name)
                counts, _ = np.histogram(np.clip(own, edges[0], edges[-1]), edges)
                panel.stairs(100 * counts / len(own), edges, color=how.color, linestyle=how.dash, label=name)
            panel.set_xlabel(words)
        for row in panels:
            row[0].set_ylabel("channels %")
        style.legend(figure, [style.handle(name, _unmarked(name)) for name in self.networks])
        style.title(figure, "BatchNorm, all layers together")
        return figure

    def notes(self) -> list[str]:
        far = self.summary()["wasserstein_distance_to_the_clean_network"]
        texts = [f"{name} {', '.join(f'{q} {value:.3f}' for q, value in parts.items())}" for name, parts in far.items()]
        return [
            "The outer bins hold what lies beyond them",
            f"Wasserstein distance to the clean network: {'; '.join(texts)}",
        ]


def _unmarked(name: str) -> style.Look:
    how = style.look(name)
    return style.Look(how.color, "", how.hatch, how.dash)


def analyse(study: Study) -> BnShift:
    """The clean network of the same seed, the victim, and each purified network."""
    mine = {name: statistics(network) for name, network in study.networks.items()}
    return BnShift({style.CLEAN: statistics(study.clean_network), **mine})
