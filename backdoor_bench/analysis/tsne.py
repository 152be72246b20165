"""Penultimate features in the plane by t-SNE, with triggered images marked (UniBP, Fig. 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from backdoor_bench.analysis.base import Finding
from backdoor_bench.analysis.study import Study
from backdoor_bench.model import anatomy
from backdoor_bench.report.figure import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PERPLEXITY = 30.0
NEIGHBOURS = 10
NAMED = 10
"""Classes that can be told apart in a picture; the names of more hide the points."""
TRIGGERED_SHARE = 5  # one triggered image to so many clean ones


def embed(features: Tensor, seed: int = 0, perplexity: float = PERPLEXITY) -> NDArray[np.float64]:
    """``(N, F)`` features to ``(N, 2)`` by scikit-learn's t-SNE; the same numbers for the same seed."""
    from sklearn.manifold import TSNE

    usable = min(perplexity, (len(features) - 1) / 3)
    model = TSNE(2, perplexity=usable, init="pca", random_state=seed)
    return np.asarray(model.fit_transform(features.cpu().numpy()), dtype=np.float64)


def neighbour_share(clean: Tensor, labels: Tensor, points: Tensor, wanted: Tensor, count: int = NEIGHBOURS) -> float:
    """Of the ``count`` nearest clean features of each point, the share whose label is the one wanted for the point.

    In the features' own space, where distances mean something; not in the plane.

    Args:
        clean: ``(N, F)`` with ``labels`` ``(N,)``.
        points: ``(M, F)`` with ``wanted`` ``(M,)``.
    """
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=min(count, len(clean))).fit(clean.cpu().numpy())
    nearest = model.kneighbors(points.cpu().numpy(), return_distance=False)
    return float((labels.cpu().numpy()[nearest] == wanted.cpu().numpy()[:, None]).mean())


@dataclass(frozen=True)
class Tsne(Finding):
    """``points``: network to (N + M, 2), clean images first; ``shares``: network to neighbour shares; ``true``,
    ``wanted``: the triggered images' labels, their own and the attack's.
    """

    points: Mapping[str, NDArray[np.float64]]
    shares: Mapping[str, Mapping[str, float]]
    labels: Sequence[int]
    true: Sequence[int]
    wanted: Sequence[int]
    class_names: Sequence[str]

    def summary(self) -> dict[str, Any]:
        shares = {name: dict(share) for name, share in self.shares.items()}
        return {"clean": len(self.labels), "triggered": len(self.true), "nearest_clean_features": shares}

    def rows(self) -> list[dict[str, Any]]:
        kinds = [(label, False) for label in self.labels] + [(label, True) for label in self.true]
        return [
            {"network": name, "x": float(at[0]), "y": float(at[1]), "true_label": label, "triggered": triggered}
            for name, points in self.points.items()
            for at, (label, triggered) in zip(points, kinds, strict=True)
        ]

    def draw(self) -> Figure:
        columns = min(len(self.points), 3)
        rows = -(-len(self.points) // columns)
        figure, panels = style.canvas(rows, columns, 2.7, 2.7)
        shown = self.named()
        looks = {label: how for label, how in zip(shown, style.classes(len(shown)), strict=True)}
        labels = np.array(self.labels)
        for panel in [panel for row in panels for panel in row][len(self.points) :]:
            panel.set_axis_off()
        for panel, (name, points) in zip([panel for row in panels for panel in row], self.points.items(), strict=False):
            clean, marked = points[: len(labels)], points[len(labels) :]
            others = clean[~np.isin(labels, shown)]
            panel.scatter(others[:, 0], others[:, 1], s=4, color="#BBBBBB", alpha=0.7, linewidths=0)
            for label, how in looks.items():
                own = clean[labels == label]
                panel.scatter(own[:, 0], own[:, 1], s=9, color=how.color, marker=how.marker, alpha=0.7, linewidths=0)
                middle = own[np.square(own - np.median(own, 0)).sum(1).argmin()]  # a point of the class, not a gap
                box = {"facecolor": "white", "alpha": 0.75, "pad": 0.5, "linewidth": 0}
                panel.text(
                    float(middle[0]),
                    float(middle[1]),
                    self.class_names[label],
                    fontsize=6.5,
                    ha="center",
                    va="center",
                    bbox=box,
                    zorder=4,
                )
            panel.scatter(marked[:, 0], marked[:, 1], s=14, marker="x", color="black", linewidths=0.8, zorder=3)
            panel.set(xticks=[], yticks=[], title=f"{name}: {100 * self.shares[name]['target']:.0f} % near the target")
            panel.grid(False)
            panel.spines[["top", "right"]].set_visible(True)
        style.title(figure, "Penultimate features, t-SNE")
        return figure

    def named(self) -> list[int]:
        """The classes that have a colour and a name: all, or :data:`NAMED` of them, the attack's targets first."""
        there = sorted(set(self.labels))
        wanted = [label for label, _ in Counter(self.wanted).most_common() if label in there]
        first = list(dict.fromkeys([*wanted, *there]))[:NAMED]
        return sorted(first) if len(there) > NAMED else there

    def notes(self) -> list[str]:
        there = len(set(self.labels))
        some = f"{NAMED} of the {there} classes have a colour and a name, the target among them; the others are grey"
        return [
            f"{len(self.labels):,} clean test images by class, {len(self.true):,} triggered ones as crosses",
            *[some] * (there > NAMED),
            f"Near the target: share of the {NEIGHBOURS} nearest clean features (not in the plane) of the attack label",
            f"scikit-learn's t-SNE, perplexity {PERPLEXITY:g}, PCA start",
        ]


def analyse(study: Study) -> Tsne:
    """The victim and each purified network."""
    triggered = study.triggered
    some = max(2, len(study.images) // TRIGGERED_SHARE)
    chosen = torch.linspace(0, len(triggered.data) - 1, min(some, len(triggered.data))).long()  # of every class
    marked, wanted, true = triggered.data.images[chosen], triggered.attack_labels[chosen], triggered.data.labels[chosen]
    points, shares = {}, {}
    for name, network in study.networks.items():
        clean = _features(study, network, study.images.images)
        poisoned = _features(study, network, marked)
        points[name] = embed(torch.cat([clean, poisoned]), study.plan.config["seed"])
        shares[name] = {
            "target": neighbour_share(clean, study.images.labels, poisoned, wanted),
            "true": neighbour_share(clean, study.images.labels, poisoned, true),
        }
    names = study.data.manifest.class_names
    return Tsne(points, shares, study.images.labels.tolist(), true.tolist(), wanted.tolist(), names)


def _features(study: Study, network: nn.Module, images: Tensor) -> Tensor:
    return study.each(images, lambda batch: anatomy.penultimate(network, batch))
