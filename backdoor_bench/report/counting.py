"""Which records count: of each key the latest good one, and of each draw on a victim the latest version's.

A key changes with the version of a stage and when a configuration gets an option, so after an update a sweep makes its
runs again under other keys. But for ``versions``, which early records lack, what a record says of itself is then the
same, and a mean over both would be one over results that a mended method does not give any more, with a spread between
versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from backdoor_bench.report import label
from backdoor_bench.report.reading import GIVEN

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

DRAW = (
    "victim", "dataset", "variant", "architecture", "width", "attack", "poisoning_ratio", "seed", "attack_options",
    "victim_options", "preset", "defense", "assumes", "spc", "clean_ratio", "clean_from", "use_validation",
    "repetition",
)  # fmt: skip
"""What a run with a defense is, besides the defense's options."""
TRAINED = DRAW[1 : DRAW.index("defense")]
"""What a victim is, as far as records say it."""


def counting(runs: DataFrame) -> tuple[DataFrame, dict[str, int]]:
    """One record of each run, by key; and how many were copies, earlier attempts, or runs of earlier versions."""
    single = runs.drop_duplicates(["key", "sha256"])
    order = single.assign(ok=single.status == "ok").sort_values(["key", "ok", "started", "record"])
    attempts = order.drop_duplicates("key", keep="last").drop(columns="ok").reset_index(drop=True)
    older = earlier_versions(attempts)
    counts = {
        "copies of records": len(runs) - len(single),
        "earlier attempts": len(single) - len(attempts),
        "runs that a later version of their method was run again for": int(older.sum()),
    }
    return attempts[~older].reset_index(drop=True), counts


def earlier_versions(runs: DataFrame) -> NDArray[np.bool_]:
    """Which runs are of the same draw on the same victim by the same defense, options included, as a later good one."""
    older = np.zeros(len(runs), dtype=bool)
    again = runs[runs.defense.notna() & runs.duplicated(list(DRAW), keep=False)]
    if not len(again):
        return older
    labelled, same = label.add(again), [*DRAW, "defense_label"]
    # Of a swept option nearly every run is one of its own: what is left is little to walk through.
    labelled = labelled[labelled.duplicated(same, keep=False)].sort_values(["started", "key"], ascending=False)
    places = {index: place for place, index in enumerate(runs.index)}
    for _, group in labelled.groupby(same, dropna=False, sort=False):
        later: list[tuple[Mapping[str, Any], bool]] = []
        for row in group.itertuples():
            mine, ok = label.flat(row.defense_options), row.status == "ok"
            # A good run is not replaced by a failed one; that one stays, to be counted as failed.
            if any((other_ok or not ok) and _agree(mine, other) for other, other_ok in later):
                older[places[row.Index]] = True
            else:
                later.append((mine, ok))
    return older


def twins(runs: DataFrame) -> int:
    """How many victims another has the like of in everything that records say, the seed too; files' are none.

    What tells them apart is a version, a precision, or images of the same name: a table cannot know, so both count.
    """
    known = runs[~runs.attack.fillna("").str.endswith(GIVEN)].drop_duplicates("victim")
    return int(known.duplicated(list(TRAINED), keep=False).sum())


def _agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether options have the same values where both have one; a label does not say a length that follows another."""
    return all(one[path] == other[path] for path in one.keys() & other.keys())
