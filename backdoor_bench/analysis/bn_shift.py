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
    from numpy.typing import NDArray

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


def bins(values: NDArray[np.float64], logarithmic: bool = False) -> NDArray[np.float64]:
    """Edges of :data:`BINS` bins over the middle 99 % of the values; of the positive ones if logarithmic."""
    kept = values[values > 0] if logarithmic else values
    low, high = np.quantile(kept, [0.005, 0.995]) if len(kept) else (1.0, 1.0)
    high = high if high > low else low + 1
    return np.asarray(np.geomspace(low, high, BINS + 1) if logarithmic else np.linspace(low, high, BINS + 1))


@dataclass(frozen=True)
class BnShift(Finding):
    """``networks``: what it is (``clean network``, ``victim``, a defense) to its :func:`statistics`; the first is what
    the others are compared with.
    """

    networks: Mapping[str, Mapping[str, Mapping[str, Tensor]]]
    sees_trigger = False

    def pooled(self, name: str, quantity: str) -> Tensor:
        return torch.cat([layer[quantity] for layer in self.networks[name].values()])

    def summary(self) -> dict[str, Any]:
        first, *others = self.networks
        far = {name: {quantity: distance(self.pooled(name, quantity), self.pooled(first, quantity))
                      for quantity in QUANTITIES} for name in others}  # fmt: skip
        return {"wasserstein_distance": far, "from": first}

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"network": name, "layer": layer, "channel": channel, **{q: float(values[q][channel]) for q in QUANTITIES}}
            for name, layers in self.networks.items()
            for layer, values in layers.items()
            for channel in range(len(values["gamma"]))
        ]

    def draw(self) -> Figure:
        looks = self._looks()
        figure, panels = style.canvas(2, 2, 2.9, 1.9)
        for panel, (quantity, words) in zip([*panels[0], *panels[1]], QUANTITIES.items(), strict=True):
            values = {name: self.pooled(name, quantity).numpy() for name in self.networks}
            edges = bins(np.concatenate(list(values.values())), logarithmic=quantity == "variance")
            for name, own in values.items():
                counts, _ = np.histogram(np.clip(own, edges[0], edges[-1]), edges)
                panel.stairs(100 * counts / len(own), edges, **looks[name])
            panel.set_xlabel(words)
            panel.set_xscale("log" if quantity == "variance" else "linear")
        for row in panels:
            row[0].set_ylabel("channels %")
        from matplotlib.patches import Patch

        style.legend(figure, [Patch(label=name, **{"facecolor": "none", **how}) for name, how in looks.items()])
        style.title(figure, "BatchNorm, all layers together")
        return figure

    def _looks(self) -> dict[str, dict[str, Any]]:
        """The clean network as an area, the victim solid on it, purified ones broken on top: none hides another."""
        found: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(self.networks):
            color = style.look(name).color
            dash = style.DASHES[max(0, number - (style.CLEAN in self.networks)) % 4]
            found[name] = {"edgecolor": color, "linewidth": 1.2, "linestyle": dash}
            if name == style.CLEAN:
                found[name] |= {"fill": True, "facecolor": style.soft(color, 0.35), "linewidth": 0.5}
        return found

    def notes(self) -> list[str]:
        found = self.summary()
        texts = [
            f"{name} {', '.join(f'{quantity} {value:.3f}' for quantity, value in parts.items())}"
            for name, parts in found["wasserstein_distance"].items()
        ]
        far = [f"Wasserstein distance from the {found['from']}: {'; '.join(texts)}"] * bool(texts)
        return ["The outer bins hold what lies beyond them", *far]


def analyse(study: Study) -> BnShift:
    """The clean network of the same seed (not for a victim that came as a file), the victim, each purified network."""
    mine = {name: statistics(network) for name, network in study.networks.items()}
    clean = study.clean_network
    return BnShift(({} if clean is None else {style.CLEAN: statistics(clean)}) | mine)
