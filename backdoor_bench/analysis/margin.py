"""The maximum-margin statistic of every class: how far any input can push its logit above the others (Wang, Xiang,
Miller and Kesidis, "MM-BD", IEEE S&P 2024, arXiv:2205.06900). Needs no images; a backdoor's target stands out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backdoor_bench import progress, seeding
from backdoor_bench.analysis.base import Finding
from backdoor_bench.analysis.study import Study
from backdoor_bench.report.figure import style
from backdoor_bench.stage.gradients import gradients_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STARTS, STEPS, RATE, TOLERANCE = 30, 300, 0.01, 1e-5
ALARM = 0.05


def margins(logits: Tensor, classes: Tensor) -> Tensor:
    """``logit_t - max over k != t of logit_k`` for each row's class t. ``(N, K)`` and ``(N,)`` to ``(N,)``."""
    rows = torch.arange(len(logits), device=logits.device)
    others = logits.clone()
    others[rows, classes] = -torch.inf
    return logits[rows, classes] - others.amax(1)


def maximum_margin(
    network: nn.Module, images: Tensor, classes: Tensor, steps: int = STEPS, rate: float = RATE
) -> Tensor:
    """The margin after gradient ascent on the images, which stay in [0, 1].

    An image stands still once its margin changed by less than 1e-5 of itself in a step, as in the authors' code.

    Args:
        images: ``(N, 3, H, W)`` to start from, float; untouched.
        classes: ``(N,)``.
        steps: at most.
        rate: of plain gradient ascent.

    Returns:
        ``(N,)`` margins, float32.
    """
    points, moving = images.clone(), torch.ones(len(images), dtype=torch.bool, device=images.device)
    best = torch.full((len(images),), -torch.inf, device=images.device)
    for _ in range(steps):
        active = moving.nonzero().flatten()
        if not len(active):
            break
        part = points[active]
        with gradients_for(network, [part]):
            values = margins(network(part).float(), classes[active])
            (gradient,) = torch.autograd.grad(values.sum(), part)
        values = values.detach()
        before = best[active]
        best[active] = values
        points[active] = (part.detach() + rate * gradient).clamp_(0, 1)
        moving[active] = (values - before).abs() >= TOLERANCE * before.abs()
    return best


def p_value(statistics: Sequence[float]) -> float:
    """How probable the largest of the classes' statistics is if it comes from the others' distribution.

    ``1 - F(max)^K`` with F a Gamma distribution fitted to the other K - 1; small means a backdoor.

    Raises:
        ValueError: fewer than three classes.
    """
    from scipy.stats import gamma

    if len(statistics) < 3:
        raise ValueError(f"a null distribution needs 2 classes besides the largest, got {len(statistics)} in all")
    rest = sorted(statistics)
    largest = rest.pop()
    shape, place, scale = gamma.fit(rest)
    return float(1 - gamma.cdf(largest, shape, place, scale) ** len(statistics))


@dataclass(frozen=True)
class Margin(Finding):
    """``statistics``: network to the statistic of each class; ``target``: the attack's, or None."""

    statistics: Mapping[str, Sequence[float]]
    class_names: Sequence[str]
    target: int | None
    sees_trigger = False

    def summary(self) -> dict[str, Any]:
        found = {}
        for name, values in self.statistics.items():
            p = p_value(values) if len(values) >= 3 else None
            label = max(range(len(values)), key=values.__getitem__)
            found[name] = {"p_value": p, "largest": self.class_names[label], "alarm": p is not None and p <= ALARM}
        return {"target": None if self.target is None else self.class_names[self.target], "networks": found}

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"network": name, "class": label, "class_name": self.class_names[label], "margin": value,
             "is_target": label == self.target}
            for name, values in self.statistics.items()
            for label, value in enumerate(values)
        ]  # fmt: skip

    def draw(self) -> Figure:
        found = self.summary()["networks"]
        width = max(2.8, 0.24 * len(self.class_names))
        figure, panels = style.canvas(1, len(self.statistics), min(width, 6), 2.3, sharey=True)
        for panel, (name, values) in zip(panels[0], self.statistics.items(), strict=True):
            own = [label == self.target for label in range(len(values))]
            panel.bar(range(len(values)), list(values), 0.75, color=["#D55E00" if mark else "#B0B0B0" for mark in own],
                      hatch=["////" if mark else "" for mark in own], edgecolor="#404040", linewidth=0.5)  # fmt: skip
            p = found[name]["p_value"]
            panel.set_title(name if p is None else f"{name}: p < 1e-10" if p < 1e-10 else f"{name}: p = {p:.2g}")
            if len(values) <= 20:
                panel.set_xticks(range(len(values)), self.class_names, rotation=60, ha="right")
            panel.grid(axis="x", visible=False)
        panels[0][0].set_ylabel("largest margin found")
        style.title(figure, "Maximum-margin statistic")
        return figure

    def notes(self) -> list[str]:
        known = "" if self.target is None else "; hatched: the true target label, which the statistic does not know"
        return [
            f"For each class the best of {STARTS} random images after up to {STEPS} steps of gradient ascent{known}",
            f"The p-value: that the largest comes from the Gamma distribution of the others; MM-BD alarms at {ALARM:g}",
        ]


def analyse(study: Study) -> Margin:
    """Every network, from the same random images."""
    classes = study.data.num_classes
    height, width = study.data.manifest.image_size
    draws = seeding.generator("analysis", "margin")
    starts = torch.rand(STARTS, 3, height, width, generator=draws).to(study.numerics.device)
    statistics: dict[str, list[float]] = {}
    for name, network in study.networks.items():
        statistics[name] = []
        with progress.track(f"margins of {name}", classes, "class") as advance:
            for label in range(classes):
                wanted = torch.full((STARTS,), label, device=starts.device)
                with study.numerics.autocast():
                    statistics[name].append(float(maximum_margin(network, starts, wanted).max()))
                advance("")
    target = None
    if study.plan.config.get("attack") is not None and study.attack.labels == "all_to_one":
        target = int(study.attack.target_label)
    return Margin(statistics, study.data.manifest.class_names, target)
