"""Scores of channels from weights alone: the upper bound of the channel Lipschitz constant (Zheng, Tang, Li and Liu,
"Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model import anatomy
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Scores
from backdoor_bench.stage.view import DefenderView


def spectral_norms(weight: Tensor) -> Tensor:
    """The largest singular value of each filter, as a matrix of input channels by kernel positions.

    From the Gram matrix on the smaller side, one batched eigen-solve for the layer; float64 keeps near ties in order.

    Args:
        weight: ``(O, I, ...)``, a convolution's; I counts the input channels of one group.

    Returns:
        ``(O,)`` float64.
    """
    filters = weight.detach().double().flatten(2)
    if filters.shape[1] > filters.shape[2]:
        filters = filters.mT
    return torch.linalg.eigvalsh(filters @ filters.mT)[:, -1].clamp_min(0).sqrt()


def channel_lipschitz(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> Tensor:
    """The bound (UCLC) of each output channel: ``sigma_max(W_k) * |gamma_k| / sqrt(var_k + eps)``.

    The authors leave out BatchNorm's eps, and a dead channel's score explodes; elsewhere it makes no difference.

    Args:
        norm: the BatchNorm behind the convolution, with its running variance; None: the filter's norm alone.

    Returns:
        ``(O,)`` float64.
    """
    norms = spectral_norms(conv.weight)
    if norm is None:
        return norms
    return norms * norm.weight.detach().double().abs() / (_variance(norm).double() + norm.eps).sqrt()


def _variance(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None
    return norm.running_var


def module_order_pairs(network: nn.Module) -> dict[str, str]:
    """``{BatchNorm name: name of the last Conv2d registered before it}``, whatever the data flow."""
    pairs, last = {}, None
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            last = name
        elif isinstance(module, nn.BatchNorm2d) and last is not None:
            pairs[name] = last
    return pairs


class ChannelLipschitz(Stage):
    """Scores every channel of every convolution with a BatchNorm2d behind it; high is suspicious. Needs no data.

    Args:
        pairing: ``graph``: a BatchNorm whose input is a convolution's output; ``module_order``: the authors' code, the
            last convolution registered before a BatchNorm. On pre-activation networks that one is not its input.
        lone_convolutions: score also, by its filter alone, each convolution without a BatchNorm. Not in the paper.
    """

    def __init__(
        self,
        pairing: Literal["graph", "module_order"] = "graph",
        lone_convolutions: bool = False,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(inputs)
        if pairing not in ("graph", "module_order"):
            raise ConfigError(f"pairing={pairing}: expected graph or module_order")
        self.pairing, self.lone_convolutions = pairing, lone_convolutions

    def pairs(self, network: nn.Module, images: Tensor | None = None) -> dict[str, str]:
        """``{BatchNorm name: convolution name}``; raises :class:`IncompatibleError` where there are none that fit.

        ``images``: see :func:`anatomy.walk`; their pixels do not matter.
        """
        found = anatomy.conv_bn_pairs(network, images) if self.pairing == "graph" else module_order_pairs(network)
        usable = anatomy.batch_norms(network)
        found = {norm: conv for norm, conv in found.items() if norm in usable}
        convolutions = anatomy.convolutions(network)
        for norm, conv in found.items():
            if usable[norm].num_features != convolutions[conv].out_channels:
                raise IncompatibleError(
                    f"pairing={self.pairing} joins {norm} ({usable[norm].num_features} channels) with {conv} "
                    f"({convolutions[conv].out_channels}), which is not its input; use pairing=graph"
                )
        if not found and not (self.lone_convolutions and convolutions):
            raise IncompatibleError(
                "channel Lipschitz scores need a convolution followed by BatchNorm2d, and "
                f"{anatomy.title(network)} has none"
            )
        return found

    def check_network(self, network: nn.Module, images: Tensor) -> None:
        self.pairs(network, images)

    @torch.no_grad()
    def run(self, network: nn.Module, view: DefenderView) -> Scores:
        norms, convolutions = anatomy.batch_norms(network), anatomy.convolutions(network)
        pairs = self.pairs(network, view.example)
        values = {norm: channel_lipschitz(convolutions[conv], norms[norm]) for norm, conv in pairs.items()}
        if self.lone_convolutions:
            paired = set(pairs.values())
            values |= {name: channel_lipschitz(conv) for name, conv in convolutions.items() if name not in paired}
        dead = [_variance(norms[name]).lt(norms[name].eps).sum() for name in pairs]
        report = {
            "layers": len(values),
            "channels": sum(len(scores) for scores in values.values()),
            "dead_channels": int(torch.stack(dead).sum()) if dead else 0,
        }
        return Scores(values, report=report)
