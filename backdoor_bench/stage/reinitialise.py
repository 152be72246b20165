"""TSBD, stage 2: zero the weights that clean unlearning moved most (Lin et al., "Unveiling and Mitigating Backdoor
Vulnerabilities based on Unlearning Weight Changes and Backdoor Activeness", NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model import anatomy
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Reference, Scores
from backdoor_bench.stage.ranking import largest
from backdoor_bench.stage.view import DefenderView


def neuron_weight_change(change: Tensor) -> Tensor:
    """NWC: the summed absolute change of a neuron's subweights.

    ``change``: (neurons, ...), the unlearned minus the original weight; returns (neurons,). A sum, not a mean, and
    nothing is normalised by layer, so neurons with a large fan-in lead.
    """
    return change.abs().flatten(1).sum(1)


def weights_to_zero(
    changes: Mapping[str, Tensor], neuron_ratio: float, weight_ratio: float, variant: str = "V3"
) -> dict[str, Tensor]:
    """Which subweights are zeroed: neurons of all layers are ranked together by NWC, then their subweights.

    The counts are exact; of equal values the first are taken (the authors compare neurons at four decimals and zero
    every weight that reaches the threshold).

    Args:
        changes: layer to its (neurons, ...) change.
        neuron_ratio: ``n``, the fraction of all neurons that is selected.
        weight_ratio: ``m``, the fraction of the selected neurons' subweights that is zeroed.
        variant: ``V3`` the most changed over all selected neurons together; ``V2`` of each selected neuron; ``V1``
            every subweight of a selected neuron.

    Returns:
        Layer to a bool tensor of the change's shape.
    """
    flat = {name: change.abs().flatten(1) for name, change in changes.items()}
    scores = torch.cat([neuron_weight_change(change) for change in changes.values()])
    selected = largest(scores, int(neuron_ratio * len(scores) + 1e-6))
    chosen = dict(zip(flat, selected.split([len(values) for values in flat.values()]), strict=True))
    if variant == "V1":
        zeroed = {name: chosen[name][:, None].expand_as(values) for name, values in flat.items()}
    elif variant == "V2":
        zeroed = {name: _largest_by_row(values, weight_ratio) & chosen[name][:, None] for name, values in flat.items()}
    else:
        rows = {name: values[chosen[name]] for name, values in flat.items()}
        pool = torch.cat([values.flatten() for values in rows.values()])
        taken = largest(pool, int(weight_ratio * len(pool) + 1e-6)).split([values.numel() for values in rows.values()])
        zeroed = {name: torch.zeros_like(values, dtype=torch.bool) for name, values in flat.items()}
        for (name, values), part in zip(rows.items(), taken, strict=True):
            zeroed[name][chosen[name]] = part.view_as(values)
    return {name: zeroed[name].reshape(change.shape) for name, change in changes.items()}


def _largest_by_row(values: Tensor, ratio: float) -> Tensor:
    """(rows, N) bool, True at the ``int(ratio * N)`` largest of each row; of equal ones the first are taken."""
    order = values.sort(dim=1, descending=True, stable=True).indices[:, : int(ratio * values.shape[1] + 1e-6)]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True)


class Reinitialise(Stage):
    """Zero, in the network itself, the weights whose twin in the unlearned Reference moved most; they stay trainable.

    Leaves the NWC of every neuron as Scores (parameter name to (neurons,); high: backdoored), not a Mask, which
    fine-tuning would freeze.

    Args:
        neuron_ratio, weight_ratio, variant: see :func:`weights_to_zero`.
        exclude: parts of parameter names that are not ranked; ``downsample`` for torchvision's shortcuts.
        layer_type: ``conv``: the filters of every Conv2d; ``linear`` (an extension, not in the paper): the rows of
            every Linear but the last, and of attention in-projections, for networks such as ViT.
    """

    def __init__(
        self,
        neuron_ratio: float = 0.15,
        weight_ratio: float = 0.7,
        variant: Literal["V1", "V2", "V3"] = "V3",
        exclude: Sequence[str] = ("shortcut",),
        layer_type: Literal["conv", "linear"] = "conv",
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(inputs)
        for name, ratio in (("neuron_ratio", neuron_ratio), ("weight_ratio", weight_ratio)):
            if not 0 < ratio <= 1:
                raise ConfigError(f"{name}={ratio}: expected a fraction in (0, 1]")
        if variant not in ("V1", "V2", "V3") or layer_type not in ("conv", "linear"):
            raise ConfigError(f"variant={variant}, layer_type={layer_type}: expected V1, V2 or V3, and conv or linear")
        self.neuron_ratio, self.weight_ratio, self.variant = neuron_ratio, weight_ratio, variant
        self.exclude, self.layer_type = tuple(exclude), layer_type

    def check_network(self, network: nn.Module, images: Tensor) -> None:
        found = self.ranked(network, images)
        if len(found) < 2:
            raise IncompatibleError(
                f"ranking neurons over layers needs two {self.layer_type} layers or more, and {anatomy.title(network)} "
                f"has {len(found)} ({', '.join(found) or 'none'}) with exclude={list(self.exclude)}; "
                "for a transformer give this stage layer_type=linear, an extension of the paper"
            )

    def ranked(self, network: nn.Module, images: Tensor | None = None) -> dict[str, Tensor]:
        """The weights whose first dimension counts neurons, by parameter name; see :func:`anatomy.neurons`."""
        found = anatomy.neurons(network, self.layer_type, images)
        return {name: weight for name, weight in found.items() if not any(part in name for part in self.exclude)}

    @torch.no_grad()
    def run(self, network: nn.Module, view: DefenderView, reference: Reference) -> Scores:
        unlearned = dict(reference.network.named_parameters())
        weights = self.ranked(network, view.example)
        changes = {name: (unlearned[name] - weight).float() for name, weight in weights.items()}
        zeroed = weights_to_zero(changes, self.neuron_ratio, self.weight_ratio, self.variant)
        for name, entries in zeroed.items():
            weights[name].masked_fill_(entries, 0)
        neurons = sum(len(weight) for weight in weights.values())
        report: dict[str, Any] = {"neurons": neurons, "selected": int(self.neuron_ratio * neurons + 1e-6)}
        report["zeroed"] = int(torch.stack([entries.sum() for entries in zeroed.values()]).sum())
        report["weights"] = sum(weight.numel() for weight in weights.values())
        return Scores({name: neuron_weight_change(change) for name, change in changes.items()}, report=report)
