"""Masks of whole units, and the writer of a Mask: pruned entries become a constant, or noise around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Mask
from backdoor_bench.stage.view import DefenderView


@torch.no_grad()
def write(
    network: nn.Module,
    pruned: Mapping[str, Tensor],
    value: float = 0.0,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> None:
    """Overwrite the pruned entries of the network's parameters with ``value + noise * N(0, 1)``, in place.

    Args:
        pruned: parameter name to a bool tensor of its shape, True where pruned; as in :class:`Mask`.
        noise: standard deviation of the Gaussian.
        generator: draws it, on the CPU, so that it is the same on every device.

    Raises:
        IncompatibleError: a name is no parameter of the network, or its entries have another shape.
    """
    parameters = dict(network.named_parameters())
    for name, entries in pruned.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != entries.shape:
            found = "no such parameter" if parameter is None else f"one of {tuple(parameter.shape)}"
            raise IncompatibleError(
                f"the mask prunes '{name}' of {tuple(entries.shape)}, and {type(network).__name__} has {found}; "
                "the mask was made for another network"
            )
        entries = entries.to(parameter.device)
        if not noise:
            parameter.masked_fill_(entries, value)
            continue
        # A number for every entry, pruned or not: no look from the host at how many there are.
        drawn = torch.empty(parameter.shape).normal_(value, noise, generator=generator)
        parameter.copy_(torch.where(entries, drawn.to(parameter), parameter))


def units_mask(
    network: nn.Module, pruned: Mapping[str, Tensor], parts: Sequence[str] = ("weight", "bias")
) -> dict[str, Tensor]:
    """A :class:`Mask`'s entries for whole units: channels of a BatchNorm, filters of a convolution, rows of a Linear.

    Args:
        pruned: module name to ``(units,)`` bool.
        parts: parameters of the module, of which a unit is the first index; those it does not have are left out.

    Raises:
        IncompatibleError: a module is not there, has none of the parts, or another number of units.
    """
    entries = {}
    for name, units in pruned.items():
        try:
            own = {part: getattr(network.get_submodule(name), part, None) for part in parts}
        except AttributeError:
            own = {}
        found = {part: parameter for part, parameter in own.items() if parameter is not None}
        if not found or any(len(parameter) != len(units) for parameter in found.values()):
            raise IncompatibleError(
                f"{len(units)} units of '{name}' have scores, and {type(network).__name__} has no "
                f"{' or '.join(parts)} of as many there; the scores were made for another network"
            )
        for part, parameter in found.items():
            column = units.to(parameter.device).view(-1, *[1] * (parameter.ndim - 1))
            entries[f"{name}.{part}"] = column.expand_as(parameter).clone()
    return entries


class Prune(Stage):
    """Writes a Mask into the network. Entries that it does not name keep their bits.

    Args:
        value: what a pruned entry becomes.
        noise: standard deviation of a Gaussian added to it, drawn once (UniBP, Eq. 5); 0: none.
    """

    def __init__(self, value: float = 0.0, noise: float = 0.0, inputs: Mapping[str, str] | None = None) -> None:
        super().__init__(inputs)
        if noise < 0:
            raise ConfigError(f"noise={noise}: expected a standard deviation, 0 for none")
        self.value, self.noise = value, noise

    def run(self, network: nn.Module, view: DefenderView, mask: Mask) -> None:
        write(network, mask.pruned, self.value, self.noise, view.generator("noise"))
