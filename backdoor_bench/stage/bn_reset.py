"""UniBP, step 1: a throw-away copy whose BatchNorm affine parameters are reset ("UniBP: Toward Universal Backdoor
Purification via Fine-Tuning", anonymous submission)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from backdoor_bench.model import anatomy
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Reference
from backdoor_bench.stage.view import DefenderView


class BNReset(Stage):
    """A copy of the network with gamma and beta of every BatchNorm2d set to constants; the network is untouched.

    Convolutions, linear layers and running statistics of the copy stay as they were.

    Args:
        gamma: the scale of every channel.
        beta: the shift of every channel.
    """

    def __init__(self, gamma: float = 1.0, beta: float = 0.0, inputs: Mapping[str, str] | None = None) -> None:
        super().__init__(inputs)
        self.gamma, self.beta = gamma, beta

    def run(self, network: nn.Module, view: DefenderView) -> Reference:
        twin = copy.deepcopy(network)
        layers = anatomy.batch_norms(twin)
        with torch.no_grad():
            for layer in layers.values():
                layer.weight.fill_(self.gamma)
                layer.bias.fill_(self.beta)
        return Reference(twin, report={"layers": len(layers)})
