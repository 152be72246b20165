"""How the neurons that a trigger moves most are distributed on clean and on triggered images (UNIT, Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from backdoor_bench.analysis.base import Finding
from backdoor_bench.analysis.study import Study
from backdoor_bench.model import anatomy
from backdoor_bench.report.figure import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4
BINS = 30


def sensitivity(clean: Tensor, triggered: Tensor) -> Tensor:
    """How far the trigger moves each neuron, in its own deviations.

    ``|mean(triggered) - mean(clean)| / sqrt((var(clean) + var(triggered)) / 2)``; 0 for a neuron that never changes.

    Args:
        clean, triggered: ``(N, F)`` and ``(M, F)``.

    Returns:
        ``(F,)``.
    """
    shift = (triggered.double().mean(0) - clean.double().mean(0)).abs()
    spread = ((clean.double().var(0) + triggered.double().var(0)) / 2).sqrt()
    return torch.where(shift > 0, shift / spread, torch.zeros_like(shift))


def overlap(clean: Tensor, triggered: Tensor) -> float:
    """1 minus the Kolmogorov-Smirnov statistic: 1 for the same distribution, 0 for two that a threshold separates."""
    from scipy.stats import ks_2samp

    return float(1 - ks_2samp(clean.numpy(), triggered.numpy()).statistic)


@dataclass(frozen=True)
class Activations(Finding):
    """``clean``, ``triggered``: network to (N, SHOWN) activations; ``neurons``: which of the ``of`` they are."""

    clean: Mapping[str, Tensor]
    triggered: Mapping[str, Tensor]
    neurons: Sequence[int]
    of: int

    def summary(self) -> dict[str, Any]:
        rows = self.rows()
        means = {
            name: float(np.mean([row["overlap"] for row in rows if row["network"] == name])) for name in self.clean
        }
        return {"neurons": list(self.neurons), "of": self.of, "mean_overlap": means}

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for name in self.clean:
            moved = sensitivity(self.clean[name], self.triggered[name])
            for at, neuron in enumerate(self.neurons):
                clean, triggered = self.clean[name][:, at], self.triggered[name][:, at]
                found.append(
                    {
                        "network": name, "neuron": neuron, "clean_mean": float(clean.mean()),
                        "clean_std": float(clean.std()), "triggered_mean": float(triggered.mean()),
                        "triggered_std": float(triggered.std()), "sensitivity": float(moved[at]),
                        "overlap": overlap(clean, triggered),
                    }
                )  # fmt: skip
        return found

    def draw(self) -> Figure:
        figure, panels = style.canvas(len(self.clean), len(self.neurons), 1.75, 1.35, sharex="col")
        overlaps = iter(self.rows())
        for row, name in zip(panels, self.clean, strict=True):
            for at, panel in enumerate(row):
                both = torch.cat([part[:, at] for kind in (self.clean, self.triggered) for part in kind.values()])
                edges = np.linspace(float(both.min()), float(both.max()) + 1e-9, BINS + 1)
                for kind, color, hatch in ((self.clean, style.GREY, ""), (self.triggered, "#D55E00", "////")):
                    values = kind[name][:, at].numpy()
                    counts, _ = np.histogram(values, edges)
                    panel.stairs(100 * counts / len(values), edges, fill=True, facecolor=(*_rgb(color), 0.35),
                                 edgecolor=color, hatch=hatch)  # fmt: skip
                panel.set_title(f"overlap {next(overlaps)['overlap']:.2f}", fontsize=6.5)
            row[0].set_ylabel(f"{name}\nimages %")
        for panel, neuron in zip(panels[-1], self.neurons, strict=True):
            panel.set_xlabel(f"neuron {neuron}")
        style.legend(figure, [style.handle("clean", style.Look(style.GREY, "", "", "-"), True),
                              style.handle("triggered", style.Look("#D55E00", "", "////", "-"), True)])  # fmt: skip
        style.title(figure, "The neurons that the trigger moves most")
        return figure

    def notes(self) -> list[str]:
        some = next(iter(self.clean.values()))
        return [
            f"Penultimate features of {len(some):,} test images, clean and triggered",
            f"The {len(self.neurons)} of {self.of} with the largest shift of means in the victim, in their own "
            "deviations; the same ones in every row",
            "Overlap: 1 minus the Kolmogorov-Smirnov statistic",
        ]


def _rgb(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def analyse(study: Study) -> Activations:
    """The neurons are chosen on the victim, and followed in each purified network."""

    def features(stored: Tensor) -> dict[str, Tensor]:
        return {
            name: study.each(stored, partial(anatomy.penultimate, network)).cpu()
            for name, network in study.networks.items()
        }

    triggered = features(study.triggered.data.images)
    clean = features(study.untriggered.images)
    moved = sensitivity(clean["victim"], triggered["victim"])
    chosen = moved.argsort(descending=True, stable=True)[:SHOWN]
    return Activations(
        {name: values[:, chosen] for name, values in clean.items()},
        {name: values[:, chosen] for name, values in triggered.items()},
        chosen.tolist(), len(moved),
    )  # fmt: skip
