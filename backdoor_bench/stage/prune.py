"""The writer of a Mask: pruned entries become a constant, or noise around it."""

from __future__ import annotations

from collections.abc import Mapping

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

    def run(self, network: nn.Module, view: DefenderView, mask: Mask) -> None:  # type: ignore[override]
        write(network, mask.pruned, self.value, self.noise, view.generator("noise"))
