"""How many BatchNorm affine entries UniBP prunes, and which: the largest scores of all layers ("UniBP: Toward Universal
Backdoor Purification via Fine-Tuning", anonymous submission, Eq. 4)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.prune import write
from backdoor_bench.stage.ranking import largest
from backdoor_bench.stage.threshold_sweep import largest_within
from backdoor_bench.stage.validation import accuracy
from backdoor_bench.stage.view import DefenderView

Statistics = tuple[Tensor, Tensor]
"""A number per channel of a layer, twice: mean and variance of its input, or scores of its gammas and betas."""

CANDIDATES = 20


def budget(k_mode: str, k: float, bn_entries: int, all_entries: int, least: int = 1) -> int:
    """K, how many BatchNorm affine entries are pruned: a share of them, a share of all parameters, or a count.

    Raises:
        ConfigError: K is more than there are, or below ``least`` (a whole channel has two entries).
    """
    count = int({"ratio_bn": k * bn_entries, "ratio_all": k * all_entries, "count": k}[k_mode] + 1e-6)
    if not least <= count <= bn_entries:
        raise ConfigError(
            f"k={k} with k_mode={k_mode} asks for {count} of {bn_entries} BatchNorm affine entries; "
            f"expected at least {least}, as k={_share(least, bn_entries)} with k_mode=ratio_bn asks for here"
        )
    return count


def _share(count: int, total: int) -> str:
    """A share of ``total``, rounded up to a tenth of a percent, that is ``count`` at least."""
    return f"{math.ceil(1000 * count / total) / 1000:g}" if total else "0"


def top_k(
    scores: Mapping[str, Statistics],
    count: int,
    unit: str = "entry",
    order: str = "top",
    max_frac_per_layer: float = 1.0,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Which gammas and betas are pruned: all layers ranked together, exactly ``count`` entries (Eq. 4).

    The paper's strict ``score < tau`` would keep fewer on ties; here the first of equal entries are taken.

    Args:
        scores: layer to Fisher scores of its gammas and of its betas, (channels,) each.
        count: entries to prune.
        unit: ``entry``; or ``channel``, which adds the two scores of a channel and prunes both, in ``count // 2``
            channels.
        order: prune the ``top`` or the ``bottom`` scores.
        max_frac_per_layer: no more than this fraction of a layer's entries; where it binds, the next best of other
            layers follow, and fewer than ``count`` are pruned when all layers are full.

    Returns:
        Layer to two bool tensors, True where pruned.
    """
    pairs = {name: torch.stack(pair) for name, pair in scores.items()}
    if unit == "channel":
        pairs, count = {name: pair.sum(0, keepdim=True) for name, pair in pairs.items()}, count // 2
    sign = 1 if order == "top" else -1
    ranks = {name: (sign * pair).flatten().float() for name, pair in pairs.items()}
    caps = {name: int(max_frac_per_layer * len(values) + 1e-6) for name, values in ranks.items()}
    allowed = {name: largest(values, caps[name]) for name, values in ranks.items()}
    flat = torch.cat([values.where(allowed[name], -torch.inf) for name, values in ranks.items()])
    chosen = largest(flat, min(count, sum(caps.values())))
    parts = chosen.split([len(values) for values in ranks.values()])
    return {
        name: tuple(part.view_as(pair).expand(2, -1).clone())  # type: ignore[misc]
        for (name, pair), part in zip(pairs.items(), parts, strict=True)
    }


def entries_mask(pruned: Mapping[str, Statistics]) -> dict[str, Tensor]:
    """As a :class:`Mask` has it: parameter name to bool entries."""
    return {
        f"{name}.{part}": entries
        for name, pair in pruned.items()
        for part, entries in zip(("weight", "bias"), pair, strict=True)
    }


def largest_harmless(
    network: nn.Module,
    view: DefenderView,
    most: int,
    pruned: Callable[[int], Mapping[str, Statistics]],
    max_drop: float,
) -> tuple[int, dict[str, float | int | None]]:
    """The largest K of :data:`CANDIDATES` equal steps up to ``most`` that validation accuracy allows; 0 if none.

    Tried on a copy, with zeros written. It may fall by at most ``max_drop``, in accuracy.

    Args:
        pruned: which entries K prunes; those of a larger K hold those of a smaller one.

    Returns:
        K, and what to report.
    """
    trial = copy.deepcopy(network)
    before = accuracy(trial, view.validation, view.numerics)
    counts = sorted({most * step // CANDIDATES for step in range(1, CANDIDATES + 1)} - {0})
    accuracies = []
    for count in counts:
        write(trial, entries_mask(pruned(count)))
        accuracies.append(accuracy(trial, view.validation, view.numerics))
    chosen = largest_within(accuracies, before, max_drop, relative=False)
    return 0 if chosen is None else counts[chosen], {
        "validation_accuracy_before": before,
        "validation_accuracy": before if chosen is None else accuracies[chosen],
        "validation_images": len(view.validation),
    }
