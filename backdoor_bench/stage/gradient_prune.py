"""Grad-Prune: prune, one by one, the filters that an unlearning loss pulls at most (Dunnett, Arablouei, Miller,
Dedeoglu and Jurdak, "Unlearning Backdoor Attacks through Gradient-Based Model Pruning", 2024, arXiv:2405.03918)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench import progress
from backdoor_bench.dataset import ImageSet
from backdoor_bench.errors import ConfigError, IncompatibleError, require_whole
from backdoor_bench.model import anatomy
from backdoor_bench.numerics import Numerics
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.gradients import gradients_for
from backdoor_bench.stage.output import InvertedTrigger, Mask
from backdoor_bench.stage.validation import accuracy, tolerance, within
from backdoor_bench.stage.view import DefenderView


def filter_scores(gradients: Sequence[Tensor]) -> Tensor:
    """The mean absolute gradient over the entries of each filter (Eq. 3), layer after layer.

    ``gradients``: (filters, inputs, h, w) per layer; returns (all filters,).
    """
    return torch.cat([gradient.abs().flatten(1).mean(1) for gradient in gradients])


@dataclass(frozen=True)
class Triggered:
    """Triggered float images (N, 3, H, W) with their true labels (N,)."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(size), self.labels.split(size), strict=True)


def unlearning_gradients(
    network: nn.Module,
    data: Triggered,
    weights: Sequence[Tensor],
    numerics: Numerics,
    batch_size: int,
    bn_mode: str = "eval",
) -> list[Tensor]:
    """Gradients of the mean ``CE(f(x~), y)`` over all triggered images; nothing is updated in eval mode.

    ``bn_mode=reference``: the first batch runs in train mode, and BatchNorm learns from it, as in the authors' code.
    """
    total: list[Tensor] = []
    for number, (images, labels) in enumerate(data.batches(batch_size)):
        network.train(bn_mode == "reference" and number == 0)
        with numerics.autocast():
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum") / len(data.labels)
        part = list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))
        total = part if not total else list(torch._foreach_add(total, part))
    network.eval()
    return total


@torch.no_grad()
def unlearning_loss(network: nn.Module, data: Triggered, numerics: Numerics, batch_size: int) -> float:
    """The mean ``CE(f(x~), y)``."""
    total = torch.zeros((), device=data.labels.device)
    for images, labels in data.batches(batch_size):
        with numerics.autocast():
            logits = network(images)
        total += F.cross_entropy(logits.float(), labels, reduction="sum")
    return float(total) / len(data.labels)


class Filters:
    """The filters of a network's convolutions, numbered through; what pruning one of them zeroes.

    Args:
        exclude: parts of the names of weights that are left out.
        images: see :func:`anatomy.walk`.
        layer_type: see :func:`anatomy.neurons`; of ``linear`` a filter is a row.
    """

    def __init__(
        self,
        network: nn.Module,
        exclude: Sequence[str] = (),
        images: Tensor | None = None,
        layer_type: str = "conv",
    ) -> None:
        self.layers = {
            name: weight
            for name, weight in anatomy.neurons(network, layer_type, images).items()
            if not any(part in name for part in exclude)
        }
        self.weights = list(self.layers.values())
        followers: dict[str, list[str]] = {name: [] for name in self.layers}
        for norm, conv in anatomy.conv_bn_pairs(network, images).items():
            followers.get(f"{conv}.weight", []).append(norm)
        self._tensors = [anatomy.channel_parameters(network, name, followers[name]) for name in self.layers]

    def __len__(self) -> int:
        return sum(len(weight) for weight in self.weights)

    def locate(self, number: int) -> tuple[int, int]:
        """The layer and the filter in it."""
        for layer, weight in enumerate(self.weights):
            if number < len(weight):
                return layer, number
            number -= len(weight)
        raise IndexError(number)

    @torch.no_grad()
    def zero(self, number: int) -> None:
        """Zero the filter, its bias, and gamma and beta of a BatchNorm that directly follows: the channel is silent."""
        layer, index = self.locate(number)
        for tensor in self._tensors[layer].values():
            tensor[index] = 0

    def mask(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """What :meth:`zero` zeroed for these filters, as a :class:`Mask` has it."""
        pruned: dict[str, Tensor] = {}
        for number in numbers:
            layer, index = self.locate(number)
            for name, tensor in self._tensors[layer].items():
                pruned.setdefault(name, torch.zeros_like(tensor, dtype=torch.bool))[index] = True
        return pruned


class GradientPrune(Stage):
    """Zero the filter with the largest mean |gradient| of the unlearning loss, again and again, and keep the best.

    After each round the validation images give the clean accuracy and the unlearning loss: where that loss is smaller
    than any before (the unpruned network's included) and the accuracy fell by at most ``alpha``, the network is
    stored. It ends when the accuracy fell by more, or after ``patience`` rounds without a new best, and leaves the
    stored network.

    A drop of exactly ``alpha`` is tolerated, and so is the loss of one validation image: with one image per class of
    ten, the paper's "less than 0.1" would end at the first error. (The authors compare floats, where 1.0 - 0.9 and
    0.9 - 0.8 are less than 0.1.)

    Unlike the authors' code: eval mode; the "bias" of a filter is its own, and gamma and beta of a BatchNorm that
    directly follows, never the next entry of the parameter list; a pruned filter is not pruned again; the loss is a
    mean over images.

    Args:
        alpha: accuracy that may be lost on validation, absolute (0.1: ten points); see :func:`validation.tolerance`.
        patience: rounds without improvement.
        batch_size: images per forward; no effect on the result in eval mode.
        filters_per_round: more than 1 changes the result (and is faster).
        max_rounds: stop there at the latest; None: no limit but the filters.
        exclude: parts of the names of convolutions that are not ranked, e.g. ``[.fc1, .fc2]`` for torchvision's
            squeeze-and-excitation.
        layer_type: ``conv``; or ``linear`` (an extension, not in the paper): the rows of every Linear but the last,
            and of attention in-projections, for networks such as ViT.
        bn_mode: ``eval``, or ``reference``, see :func:`unlearning_gradients`.
    """

    version = 2
    uses_validation = True

    def __init__(
        self,
        alpha: float = 0.1,
        patience: int = 10,
        batch_size: int = 128,
        filters_per_round: int = 1,
        max_rounds: int | None = None,
        exclude: Sequence[str] = (),
        bn_mode: Literal["eval", "reference"] = "eval",
        layer_type: Literal["conv", "linear"] = "conv",
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(inputs)
        if not 0 < alpha <= 1:
            raise ConfigError(f"alpha={alpha}: expected an accuracy drop as a fraction in (0, 1]")
        if patience < 1 or filters_per_round < 1:
            raise ConfigError(f"patience={patience}, filters_per_round={filters_per_round}: expected 1 or more")
        if bn_mode not in ("eval", "reference"):
            raise ConfigError(f"bn_mode={bn_mode}: expected eval or reference")
        if layer_type not in ("conv", "linear"):
            raise ConfigError(f"layer_type={layer_type}: expected conv or linear")
        self.layer_type = layer_type
        self.alpha, self.patience, self.bn_mode = alpha, patience, bn_mode
        self.batch_size = require_whole("batch_size", batch_size, 1)
        self.filters_per_round, self.max_rounds, self.exclude = filters_per_round, max_rounds, tuple(exclude)

    def check_network(self, network: nn.Module, images: Tensor) -> None:
        found = Filters(network, self.exclude, images, self.layer_type)
        if len(found.layers) < 2:
            raise IncompatibleError(
                f"ranking filters over layers needs two {self.layer_type} layers or more, and {anatomy.title(network)} "
                f"has {len(found.layers)} ({', '.join(found.layers) or 'none'}) with exclude={list(self.exclude)}; "
                "for a transformer give this stage layer_type=linear, an extension of the paper"
            )

    def run(self, network: nn.Module, view: DefenderView, trigger: InvertedTrigger) -> Mask:
        numerics, size = view.numerics, self.batch_size
        train, held_out = (triggered(trigger, part, view) for part in (view.train, view.validation))
        filters = Filters(network, self.exclude, view.example, self.layer_type)
        before = accuracy(network, view.validation, numerics)
        first = best = unlearning_loss(network, held_out, numerics, size)
        stored = clone(network)
        pruned: list[int] = []
        kept = rounds = 0
        limit = -(-len(filters) // self.filters_per_round)
        limit = limit if self.max_rounds is None else min(limit, self.max_rounds)
        tolerated, waited = tolerance(self.alpha, len(held_out.labels)), 0
        with progress.track(view.stage, limit, "round") as advance, gradients_for(network, filters.weights):
            while rounds < limit and waited < self.patience:
                scores = filter_scores(
                    unlearning_gradients(network, train, filters.weights, numerics, size, self.bn_mode)
                )
                scores[pruned] = -1.0
                count = min(self.filters_per_round, len(filters) - len(pruned))
                chosen = scores.topk(count).indices.tolist()
                for number in chosen:
                    filters.zero(number)
                pruned += chosen
                rounds += 1
                now, loss = (
                    accuracy(network, view.validation, numerics),
                    unlearning_loss(network, held_out, numerics, size),
                )
                advance(f"loss {loss:.4f}, accuracy {now:.4f}")
                if not within(before, now, tolerated):
                    break
                waited += 1
                if loss < best:
                    best, kept, waited, stored = loss, len(pruned), 0, clone(network)
        network.load_state_dict(stored)
        report = {"rounds": rounds, "pruned_filters": kept, "filters": len(filters), "loss_before": first, "loss": best}
        report |= {"accuracy_before": before, "accuracy": accuracy(network, view.validation, numerics)}
        report |= {"tolerated_drop": tolerated, "validation_images": len(held_out.labels)}
        return Mask(filters.mask(pruned[:kept]), report=report)


@torch.no_grad()
def triggered(trigger: InvertedTrigger, data: ImageSet, view: DefenderView) -> Triggered:
    """All images with the trigger, once: a trigger gives the same image every time."""
    parts = [trigger.trigger(view.numerics.images(stored)) for stored in data.images.split(500)]
    return Triggered(torch.cat(parts).contiguous(memory_format=view.numerics.memory_format), data.labels)


def clone(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
