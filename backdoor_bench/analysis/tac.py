"""Trigger-activated change of neurons, and how much of it the scores of defenses find (TSBD, Fig. 4).

A neuron is a channel of a convolution with the BatchNorm behind it, seen after that BatchNorm: there layers are on one
scale, and it is the one set of neurons for which every score compared here exists.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backdoor_bench import progress
from backdoor_bench.analysis.base import Finding
from backdoor_bench.analysis.study import Study
from backdoor_bench.config import directory
from backdoor_bench.defense import DefenderView, Defense
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model import anatomy
from backdoor_bench.report.figure import style
from backdoor_bench.stage.output import Scores
from backdoor_bench.stage.ranking import largest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUSPECT_HIGH = {"tsbd": True, "clp": True, "anp": False, "rnp": False}
"""Defenses whose scores are compared, and whether a high score is the suspicious one."""
WORDS = {
    "tsbd": "NWC",
    "clp": "channel Lipschitz",
    "anp": "ANP mask",
    "rnp": "RNP mask",
    "activation": "mean activation",
}
LOOKS = {"activation": "fp"}
RATIOS = tuple(n / 100 for n in (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100))


def trigger_activated_change(clean: Tensor, triggered: Tensor) -> Tensor:
    """TAC of each channel: the mean over pairs of the L2 norm of the difference of its maps.

    Args:
        clean, triggered: ``(N, C, H, W)`` of the same images in the same order.

    Returns:
        ``(C,)``.

    Source:
        Zheng et al., CLP, ECCV 2022; the survey's Eq. 3. (BackdoorBench's tool sums absolute differences instead.)
    """
    return (triggered.float() - clean.float()).flatten(2).norm(dim=2).mean(0)


def coverage(scores: Tensor, change: Tensor, ratio: float, high: bool = True) -> float:
    """The share of the top ``ratio`` of neurons by TAC that is among as many by a score.

    Args:
        scores, change: ``(N,)`` of the same neurons.
        high: whether high scores are suspicious; else low ones.

    Returns:
        ``|top by score & top by TAC| / |top|``; a score that knows nothing gets ``ratio`` on average.
    """
    count = max(1, int(ratio * len(change) + 1e-9))
    chosen = largest(scores.double() if high else -scores.double(), count)
    return float((chosen & largest(change.double(), count)).sum()) / count


@dataclass(frozen=True)
class Tac(Finding):
    """``change``: network to layer to (channels,) TAC; ``scores``: name to (neurons,), in the layers' order."""

    change: Mapping[str, Mapping[str, Tensor]]
    scores: Mapping[str, Tensor]
    pairs: int

    def joined(self, name: str) -> Tensor:
        return torch.cat(list(self.change[name].values()))

    def curve(self, score: str) -> list[float]:
        high = SUSPECT_HIGH.get(score, False)
        return [coverage(self.scores[score], self.joined("victim"), ratio, high) for ratio in RATIOS]

    def summary(self) -> dict[str, Any]:
        return {
            "neurons": len(self.joined("victim")),
            "image_pairs": self.pairs,
            "mean_tac": {name: float(self.joined(name).mean()) for name in self.change},
            "largest_tac": {name: float(self.joined(name).max()) for name in self.change},
            "ratios": list(RATIOS),
            "coverage": {WORDS[name]: self.curve(name) for name in self.scores},
        }

    def rows(self) -> list[dict[str, Any]]:
        scores = {WORDS[name]: values.tolist() for name, values in self.scores.items()}
        places = [(layer, n) for layer, values in self.change["victim"].items() for n in range(len(values))]
        changes = {f"tac {name}": self.joined(name).tolist() for name in self.change}
        return [
            {"layer": layer, "channel": channel, **{n: values[at] for n, values in (changes | scores).items()}}
            for at, (layer, channel) in enumerate(places)
        ]

    def draw(self) -> Figure:
        figure, panels = style.canvas(1, 2, 3.0, 2.5)
        left, right = panels[0]
        for name in self.change:
            values = self.joined(name).sort(descending=True).values.tolist()
            how = style.look(name)
            left.plot([100 * (n + 1) / len(values) for n in range(len(values))], values, color=how.color,
                      linestyle=how.dash, label=name)  # fmt: skip
        left.set(xlabel="neurons, sorted, %", ylabel="trigger-activated change", ylim=(0, None))
        left.legend()
        right.plot([0, 100], [0, 100], color=style.GREY, linestyle=":", linewidth=0.8, label="by chance")
        for name in self.scores:
            how = style.look(LOOKS.get(name, name))
            right.plot([100 * ratio for ratio in RATIOS], [100 * part for part in self.curve(name)], color=how.color,
                       linestyle=how.dash, marker=how.marker, markersize=4, label=WORDS[name])  # fmt: skip
        right.set(xlabel="neurons chosen, %", ylabel="coverage of the top TAC, %", ylim=(0, 102))
        style.legend(figure, right.get_legend_handles_labels()[0], "score")
        style.title(figure, "Trigger-activated change of neurons, and what finds them")
        return figure

    def notes(self) -> list[str]:
        return [
            f"{len(self.joined('victim')):,} channels of convolutions, after the BatchNorm behind each; TAC: "
            f"mean over {self.pairs:,} image pairs of the L2 norm of the map's difference",
            "Scores by the defenses' own stages on the defender's clean images; of mean activation and masks the "
            "lowest are suspect",
        ]


def change_of(study: Study, network: nn.Module, layers: Mapping[str, str]) -> dict[str, Tensor]:
    """TAC of each BatchNorm's channels, over the study's image pairs."""
    modules = {name: network.get_submodule(name) for name in layers}
    total = {name: torch.zeros((), dtype=torch.float64) for name in layers}
    count = len(study.untriggered)
    for at in range(0, count, 250):
        rows = slice(at, at + 250)
        clean = _maps(study, network, modules, study.untriggered.images[rows])
        triggered = _maps(study, network, modules, study.triggered.data.images[rows])
        for name in layers:
            part = trigger_activated_change(clean[name], triggered[name]).double().cpu()
            total[name] = total[name] + part * len(clean[name])
    return {name: (values / count).float() for name, values in total.items()}


def _maps(study: Study, network: nn.Module, modules: Mapping[str, nn.Module], stored: Tensor) -> dict[str, Tensor]:
    """What each module gives for one batch."""
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, __: Any, output: Tensor, name: str) -> None:
        seen[name] = output.clone()  # what runs next may work in place

    handles = [module.register_forward_hook(partial(keep, name=name)) for name, module in modules.items()]
    try:
        with torch.inference_mode(), study.numerics.autocast():
            network(study.numerics.images(stored))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def first_scores(defense: Defense, network: nn.Module, view: DefenderView) -> Scores:
    """The first Scores that a defense's stages leave, on a copy of the network; later stages do not run.

    Raises:
        IncompatibleError: it leaves none.
    """
    for result in defense.run(copy.deepcopy(network), view):
        if isinstance(result.output, Scores):
            return result.output
    raise IncompatibleError(f"no stage of {defense.name} leaves scores")


def by_neuron(scores: Scores, layers: Mapping[str, str]) -> Tensor:
    """(neurons,) scores in the order of ``layers``, whether they are kept by BatchNorm or by convolution.

    Raises:
        IncompatibleError: a layer has none.
    """
    found = []
    for norm, conv in layers.items():
        own = next(
            (scores.values[key] for key in (norm, f"{norm}.weight", conv, f"{conv}.weight") if key in scores.values),
            None,
        )
        if own is None:
            raise IncompatibleError(f"no scores of {norm} or {conv}")
        found.append(own.detach().float().cpu())
    return torch.cat(found)


def mean_activation(study: Study, network: nn.Module, layers: Mapping[str, str], view: DefenderView) -> Tensor:
    """(neurons,) mean over the defender's images and positions of the rectified channel, as Fine-Pruning ranks."""
    modules = {name: network.get_submodule(name) for name in layers}
    totals = {name: torch.zeros((), dtype=torch.float64) for name in layers}
    for stored in view.train.images.split(250):
        for name, maps in _maps(study, network, modules, stored).items():
            totals[name] = totals[name] + maps.float().clamp_min(0).mean((2, 3)).sum(0).double().cpu()
    return torch.cat([total / len(view.train) for total in totals.values()]).float()


def analyse(study: Study) -> Tac:
    """TAC of every network; scores of the victim by each defense of :data:`SUSPECT_HIGH` that there is."""
    study.attack  # noqa: B018  refuse before any work
    network = study.victim.network
    layers = anatomy.conv_bn_pairs(network)
    if not layers:
        raise IncompatibleError(f"{type(network).__name__} has no convolution with a BatchNorm2d behind it")
    change = {name: change_of(study, each, layers) for name, each in study.networks.items()}
    scores = {}
    for name in SUSPECT_HIGH:
        if (directory() / "defense" / f"{name}.yaml").is_file():
            progress.say(f"scores by {name}")
            scores[name] = by_neuron(first_scores(*_on(study, name, network)), layers)
    scores["activation"] = mean_activation(study, network, layers, study.defender("fp")[1])
    return Tac(change, scores, len(study.untriggered))


def _on(study: Study, name: str, network: nn.Module) -> tuple[Defense, nn.Module, DefenderView]:
    defense, view = study.defender(name)
    return defense, network, view
