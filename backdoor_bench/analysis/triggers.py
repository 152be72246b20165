"""What a trigger does to images: clean, triggered, and the residual enlarged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from backdoor_bench.analysis.base import Finding
from backdoor_bench.analysis.study import Study
from backdoor_bench.report.figure import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8
FACTORS = (1, 2, 5, 10, 20, 50)


def differences(clean: Tensor, triggered: Tensor) -> dict[str, Tensor]:
    """How far each triggered image is from its clean one.

    Args:
        clean, triggered: ``(N, 3, H, W)``, float, in [0, 1].

    Returns:
        ``(N,)`` each: ``linf`` and ``l2`` norms over all values, ``changed`` (share of the pixels in which a channel
        differs), ``psnr`` in dB (infinite for equal images).
    """
    change = (triggered - clean).double()
    squares = change.square().flatten(1)
    return {
        "linf": change.abs().flatten(1).amax(1),
        "l2": squares.sum(1).sqrt(),
        "changed": (change != 0).any(1).flatten(1).double().mean(1),
        "psnr": -10 * squares.mean(1).log10(),
    }


def residual(clean: Tensor, triggered: Tensor, factor: float) -> Tensor:
    """The change as an image: grey where there is none, ``0.5 + factor * (triggered - clean) / 2`` in [0, 1]."""
    return (0.5 + factor * (triggered - clean) / 2).clamp(0, 1)


def enlargement(clean: Tensor, triggered: Tensor) -> int:
    """The largest of :data:`FACTORS` with which almost every change (99.9 % of the values) stays in range."""
    changes = (triggered - clean).abs().flatten()
    most = float(changes.sort().values[int(0.999 * (len(changes) - 1))])
    return max((factor for factor in FACTORS if factor * most <= 1), default=1)


@dataclass(frozen=True)
class Triggers(Finding):
    """A contact sheet. ``clean``, ``triggered``: the shown images; ``measured``: of all images."""

    clean: Tensor
    triggered: Tensor
    labels: Sequence[str]
    wanted: Sequence[str]
    measured: Mapping[str, Tensor]
    factor: int

    def summary(self) -> dict[str, Any]:
        finite = {name: values[values.isfinite()] for name, values in self.measured.items()}
        means = {name: float(values.mean()) if len(values) else None for name, values in finite.items()}
        return {"images": len(self.measured["l2"]), "factor": self.factor, "mean": means}

    def rows(self) -> list[dict[str, Any]]:
        columns = {
            name: [v if math.isfinite(v) else None for v in values.tolist()] for name, values in self.measured.items()
        }
        return [
            {"image": n, **{name: column[n] for name, column in columns.items()}}
            for n in range(len(self.measured["l2"]))
        ]

    def draw(self) -> Figure:
        sheet = {"clean": self.clean, "triggered": self.triggered,
                 f"residual x {self.factor}": residual(self.clean, self.triggered, self.factor)}  # fmt: skip
        figure, panels = style.canvas(3, len(self.clean), 0.82, 0.92)
        for row, (words, images) in zip(panels, sheet.items(), strict=True):
            for panel, image in zip(row, images, strict=True):
                panel.imshow(image.permute(1, 2, 0).float().cpu().numpy(), vmin=0, vmax=1, interpolation="nearest")
                panel.set(xticks=[], yticks=[])
                panel.grid(False)
                panel.spines[:].set_visible(False)
            row[0].set_ylabel(words)
        for top, middle, label, wanted in zip(panels[0], panels[1], self.labels, self.wanted, strict=True):
            top.set_title(label, fontsize=6.5)
            middle.set_title(f"to {wanted}", fontsize=6.5)
        style.title(figure, "What the trigger does")
        return figure

    def notes(self) -> list[str]:
        mean = self.summary()["mean"]
        psnr = "" if mean["psnr"] is None else f", PSNR {mean['psnr']:.1f} dB"
        return [
            f"Means over {len(self.measured['l2']):,} test images, pixels in [0, 1]: largest change "
            f"{mean['linf']:.3f}, L2 {mean['l2']:.2f}, {100 * mean['changed']:.1f} % of the pixels changed{psnr}"
        ]


def analyse(study: Study) -> Triggers:
    """A contact sheet of one image of each of the first classes."""
    clean = study.numerics.images(study.untriggered.images).cpu()
    triggered = study.numerics.images(study.triggered.data.images).cpu()
    labels = study.untriggered.labels.cpu()
    first = [int((labels == label).nonzero()[0]) for label in labels.unique()[:SHOWN]]
    names = study.data.manifest.class_names
    before = [names[int(labels[n])] for n in first]
    after = [names[int(study.triggered.attack_labels[n])] for n in first]
    return Triggers(
        clean[first], triggered[first], before, after,
        differences(clean, triggered), enlargement(clean, triggered),
    )  # fmt: skip
