"""Means with their n and spread: one cell per setting, attack and defense."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from backdoor_bench.report import chance, label

if TYPE_CHECKING:
    from pandas import DataFrame

METRICS = ("acc", "asr", "ra", "der", "arr", "rdr")
LOWER_IS_BETTER = ("asr", "arr", "rdr")
SETTING = ("dataset", "variant", "network", "poisoning_ratio", "regime", "preset")
"""What one table has in common; ``poisoning_ratio`` is null for clean networks, ``regime`` for victims alone."""
CELL = (*SETTING, "attack_label", "defense_label")
RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0
FEW = 5
"""Values below which an interval is too narrow whatever is done, so that it decides nothing."""

Array = NDArray[np.float64]


def cells(runs: DataFrame, metrics: Sequence[str] = METRICS) -> DataFrame:
    """One row per setting, attack and defense, the victims among them (``defense_label`` is ``none``).

    Args:
        runs: of :class:`frame.Records`; failed ones are counted, not averaged.

    Returns:
        :data:`CELL`, ``architecture width attack defense assumes spc clean_ratio`` and the options, ``n`` (runs that
        were measured; for victims, how many), ``failed``, ``weak`` and ``at_chance`` (of the n; the network's or its
        victim's ACC), ``victims``, and for each metric ``NAME_n``, ``NAME_mean``, ``NAME_std`` (null for one run),
        ``NAME_low`` and ``NAME_high`` (95 % bootstrap interval of the mean; null for one run). Fractions.
    """
    import pandas as pd

    frame = label.add(runs)
    defended = frame[frame.defense.notna()]
    frame = pd.concat([_victims(frame), defended], ignore_index=True)
    frame["ok"] = frame.status == "ok"
    frame["weak"] = frame.weak_attack.fillna(False).astype(bool) & frame.ok
    frame["at_chance"] = chance.victims(frame) | chance.purified(frame)
    groups = frame.groupby(list(CELL), dropna=False, sort=True)
    found = groups.agg(
        architecture=("architecture", "first"), width=("width", "first"), attack=("attack", "first"),
        defense=("defense", "first"), assumes=("assumes", "first"), attack_options=("attack_options", "first"),
        victim_options=("victim_options", "first"), defense_options=("defense_options", "first"),
        spc=("spc", "first"), clean_ratio=("clean_ratio", "first"), n=("ok", "sum"), weak=("weak", "sum"),
        at_chance=("at_chance", "sum"), failed=("ok", lambda ok: int((~ok).sum())), victims=("victim", "nunique"),
    ).reset_index()  # fmt: skip
    number = groups.ngroup().to_numpy()
    for metric in metrics:
        values = frame[metric].to_numpy("float64", na_value=np.nan)
        count, mean, std, low, high = spread(values, number, len(found))
        found[[f"{metric}_{name}" for name in ("n", "mean", "std", "low", "high")]] = np.column_stack(
            [count, mean, std, low, high]
        )
        found[f"{metric}_n"] = count.astype(int)
    return found


def _victims(frame: DataFrame) -> DataFrame:
    """Each victim once in every regime in which something was run on it; if nothing was, in none; and failed ones."""
    import pandas as pd

    ok, alone = frame[frame.status == "ok"], frame[frame.defense.isna()]
    used = ok[ok.defense.notna()]
    rest = alone[(alone.status == "ok") & ~alone.victim.isin(used.victim.unique())]
    measured = pd.concat([used, rest]).drop_duplicates(["victim", "regime"])
    before = {name: measured[f"before_{name}"] for name in ("acc", "asr", "ra")}
    found = pd.concat([measured.assign(**before), alone[alone.status != "ok"]], ignore_index=True)
    return found.assign(der=np.nan, arr=np.nan, rdr=np.nan, defense=None, defense_label=label.NO_DEFENSE, assumes="")


def spread(values: Array, groups: NDArray[np.int64], count: int) -> tuple[Array, Array, Array, Array, Array]:
    """n, mean, sample standard deviation and bootstrap interval of each group's values; null values are left out.

    Args:
        values: ``(N,)``; NaN is null.
        groups: ``(N,)``, in 0 .. count - 1.
        count: of groups.

    Returns:
        Five ``(count,)``: mean is NaN for n = 0, the others for n < 2.
    """
    there = ~np.isnan(values)
    values, groups = values[there], groups[there]
    order = np.argsort(groups, kind="stable")
    values = values[order]
    n = np.bincount(groups, minlength=count)
    starts = np.concatenate([[0], np.cumsum(n)[:-1]])
    mean, std, low, high = (np.full(count, np.nan) for _ in range(4))
    for size in np.unique(n[n > 0]):
        rows = np.flatnonzero(n == size)
        block = values[starts[rows][:, None] + np.arange(size)]
        mean[rows] = block.mean(1)
        if size > 1:
            std[rows] = block.std(1, ddof=1)
            low[rows], high[rows] = interval(block)
    return n.astype(float), mean, std, low, high


def interval(block: Array) -> tuple[Array, Array]:
    """95 % bootstrap interval of each row's mean: percentiles, moved outwards as far as small samples need.

    The plain percentile interval is too narrow: of five normal values it holds the mean 85 times in 100. Its tails are
    therefore those of Student's t (:func:`tail`), with which it is 93; from about 8 values on it is 95. Below
    :data:`FEW` values no choice of percentiles helps, as no resample leaves the range of the values (3: 75 in 100).

    Args:
        block: ``(rows, n)`` with n >= 2.

    Returns:
        Two ``(rows,)``. Every row is resampled by the same seeded draws, so a result does not depend on what else
        is in the table.

    Source:
        Hesterberg, "What Teachers Should Know About the Bootstrap", arXiv:1411.5279: the expanded percentile interval.
    """
    weights = (_kept if block.shape[1] <= SMALL else _last)(block.shape[1])
    outside = 100 * tail(block.shape[1])
    rows = max(1, 4_000_000 // RESAMPLES)
    bounds = [
        np.percentile(block[start : start + rows] @ weights, [outside, 100 - outside], axis=1)
        for start in range(0, len(block), rows)
    ]
    low, high = np.concatenate(bounds, axis=1)
    return low, high


def tail(count: int) -> float:
    """The share of resamples on either side of the interval: ``Phi(-sqrt(n / (n - 1)) t)``, with t of n - 1 degrees."""
    from scipy.special import ndtr, stdtrit

    student = stdtrit(count - 1, (1 + CONFIDENCE) / 2)
    return float(ndtr(-np.sqrt(count / (count - 1)) * student))


def _weights(size: int) -> Array:
    """``(size, RESAMPLES)``: how much each value counts in each resample; the same for equal sizes."""
    draws = np.random.default_rng(SEED).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    return np.asarray(draws.T / size, dtype=np.float64)


# Drawing takes longer than what it is drawn for. Few sizes are large, and those take much memory.
SMALL = 128
_kept, _last = lru_cache(SMALL)(_weights), lru_cache(1)(_weights)
