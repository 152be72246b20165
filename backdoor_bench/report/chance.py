"""Runs with networks that are no working classifiers (:mod:`backdoor_bench.chance`).

A victim at chance never was one, so nothing done to it ranks anything: its runs are treated as those of weak attacks.
A network that its defense left at chance is what the defense is worth there: it stays in every mean, is marked, and an
ASR of 0 does not bring it to the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from backdoor_bench.chance import at_chance

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

FIELDS = {"victim_at_chance": "before_acc", "at_chance": "acc"}
"""The records' fields, and the accuracy that each is about."""
CONSTANT = {
    "digits": 36 / 355, "cifar10": 0.1, "cifar100": 0.01, "gtsrb": 750 / 12630, "tiny_imagenet": 0.005, "stl10": 0.1,
}  # fmt: skip
"""The share of the largest class in the test set, for records older than the fields."""


def fill(runs: DataFrame) -> DataFrame:
    """The runs, with the fields of older records told from accuracy and data set; null for one not in CONSTANT."""
    found = {}
    for field, accuracy in FIELDS.items():
        old = runs[field].isna() & runs[accuracy].notna() & runs.dataset.isin(list(CONSTANT)) & (runs.status == "ok")
        pairs = zip(runs[accuracy][old], runs.dataset[old], strict=True)
        found[field] = runs[field].copy()
        found[field][old] = [at_chance(acc, CONSTANT[name]) for acc, name in pairs]
    return runs.assign(**found)


def victims(runs: DataFrame) -> NDArray[np.bool_]:
    """Which runs were measured with a victim at chance."""
    return np.asarray(runs.victim_at_chance.fillna(False).astype(bool) & (runs.status == "ok"))


def purified(runs: DataFrame) -> NDArray[np.bool_]:
    """In which runs the defense left a network at chance that was not before."""
    left = runs.at_chance.fillna(False).astype(bool) & runs.defense.notna() & (runs.status == "ok")
    return np.asarray(left & ~victims(runs))


def mostly(runs: DataFrame, by: str = "defense") -> Sequence[str]:
    """The defenses that left most of their networks at chance."""
    share = runs.assign(left=runs.at_chance.fillna(False).astype(bool)).groupby(by).left.mean()
    return list(share.index[share > 0.5])
