"""Neuron weight change under clean and under poison unlearning, and their correlation (TSBD, Fig. 1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backdoor_bench import progress, seeding
from backdoor_bench.analysis.base import Finding
from backdoor_bench.analysis.study import Study
from backdoor_bench.attack import stamp
from backdoor_bench.dataset import ImageSet
from backdoor_bench.defense import DefenderView
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.report.figure import style
from backdoor_bench.stage.output import Reference
from backdoor_bench.stage.reinitialise import Reinitialise, neuron_weight_change
from backdoor_bench.stage.unlearn import Unlearn
from backdoor_bench.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("clean", "poison")


def correlation(one: Tensor, other: Tensor) -> dict[str, float | None]:
    """Pearson's and Spearman's correlation of two rows of numbers; None where one of them does not vary."""
    from scipy.stats import pearsonr, spearmanr

    if len(one) < 2 or one.eq(one[0]).all() or other.eq(other[0]).all():
        return {"pearson": None, "spearman": None}
    return {
        "pearson": float(pearsonr(one.double(), other.double()).statistic),
        "spearman": float(spearmanr(one.double(), other.double()).statistic),
    }


@dataclass(frozen=True)
class Unlearning(Finding):
    """``changes``: ``clean`` and ``poison`` to layer to (neurons,) NWC; ``reports``: how each unlearning ended."""

    changes: Mapping[str, Mapping[str, Tensor]]
    reports: Mapping[str, Mapping[str, Any]]
    images: int

    def joined(self, kind: str) -> Tensor:
        return torch.cat(list(self.changes[kind].values()))

    def summary(self) -> dict[str, Any]:
        layers = {
            name: correlation(self.changes["clean"][name], self.changes["poison"][name])
            for name in self.changes["clean"]
        }
        return {
            "neurons": len(self.joined("clean")),
            "images": self.images,
            "unlearning": {kind: dict(report) for kind, report in self.reports.items()},
            "correlation": correlation(self.joined("clean"), self.joined("poison")),
            "correlation_by_layer": layers,
        }

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"layer": name, "neuron": n, **{f"nwc_{kind}": float(self.changes[kind][name][n]) for kind in KINDS}}
            for name, values in self.changes["clean"].items()
            for n in range(len(values))
        ]

    def draw(self) -> Figure:
        figure, panels = style.canvas(1, 2, 3.0, 2.6)
        last = list(self.changes["clean"])[-1]
        parts = {
            "all layers": [self.joined(kind) for kind in KINDS],
            last: [self.changes[kind][last] for kind in KINDS],
        }
        for panel, (words, (clean, poison)) in zip(panels[0], parts.items(), strict=True):
            found = correlation(clean, poison)
            text = ", ".join(f"{name.capitalize()} {value:.2f}" for name, value in found.items() if value is not None)
            panel.scatter(
                clean.tolist(),
                poison.tolist(),
                s=9,
                color="#0072B2",
                alpha=0.6,
                linewidths=0,
                rasterized=len(clean) > 3000,
            )
            panel.set(
                title=f"{words}, {len(clean)} neurons\n{text}",
                xlabel="NWC, clean unlearning",
                ylim=(0, None),
                xlim=(0, None),
            )
        panels[0][0].set_ylabel("NWC, poison unlearning")
        style.title(figure, "What unlearning moves")
        return figure

    def notes(self) -> list[str]:
        ends = [
            f"{kind} unlearning: {counted(report['epochs'], 'epoch')} to an accuracy of "
            f"{100 * report['accuracy']:.1f} %"
            for kind, report in self.reports.items()
        ]
        return [
            f"NWC: summed absolute change of a filter's weights; gradient ascent on {self.images:,} of the defender's "
            "images, as they are (clean) and triggered, with the attack label (poison)",
            *ends,
        ]


def analyse(study: Study) -> Unlearning:
    """Both unlearnings by TSBD's own stage, on copies of the victim."""
    attack, trigger = study.attack, study.victim.trigger
    assert trigger is not None
    defense, view = study.defender("tsbd")
    stages = list(defense.stages.values())
    unlearn = next((stage for stage in stages if isinstance(stage, Unlearn)), None)
    ranks = next((stage for stage in stages if isinstance(stage, Reinitialise)), None)
    if unlearn is None or ranks is None:
        raise IncompatibleError("tsbd as configured has no unlearning and ranking of neurons to look at")
    labels = view.train.labels
    wanted = attack.attack_labels(labels, study.data.num_classes)
    clean = view.train[wanted != labels]
    poisoned = ImageSet(stamp(trigger, clean.images, study.numerics), wanted[wanted != labels])
    changes, reports = {}, {}
    for kind, data in zip(KINDS, (clean, poisoned), strict=True):
        progress.say(f"{kind} unlearning of {len(data):,} images")
        reference = _unlearned(unlearn, study.victim.network, replace(view, train=data))
        twin = dict(reference.network.named_parameters())
        weights = ranks.ranked(study.victim.network)
        changes[kind] = {
            name.removesuffix(".weight"): neuron_weight_change((twin[name] - weight).detach().float()).cpu()
            for name, weight in weights.items()
        }
        reports[kind] = reference.report
    return Unlearning(changes, reports, len(clean))


def _unlearned(stage: Unlearn, network: nn.Module, view: DefenderView) -> Reference:
    own = view.for_stage("unlearn")
    with seeding.scope("analysis", "unlearning", view.repetition, device=view.device):
        return stage.run(copy.deepcopy(network), own)
