"""Which runs a figure shows, and what its reader must be told of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backdoor_bench.errors import ConfigError
from backdoor_bench.report import chance
from backdoor_bench.report import label as labels
from backdoor_bench.report.frame import Records
from backdoor_bench.words import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

SETTINGS = {
    "dataset": "data set", "variant": "pixels", "architecture": "architecture", "width": "width", "attack": "attack",
    "poisoning_ratio": "poisoning ratio", "attack_options": "attack options", "victim_options": "training options",
    "regime": "clean data", "defense_options": "defense options", "preset": "preset", "seed": "seed",
    "repetition": "repetition",
}  # fmt: skip
"""What may differ between runs of one defense, by column, as a footnote calls it."""
OWNERS = {"defense_options": "defense", "attack_options": "attack", "victim_options": "architecture"}
"""Options differ from method to method; what counts is whether they do so within one."""
LABELS = {"asr": "ASR %", "ra": "RA %", "acc": "ACC %", "rdr": "RDR %", "arr": "ARR %", "der": "DER %"}
MOST_PANELS = 9
DAGGER = "†"
ON_WEAK = "on weak attacks"


@dataclass(frozen=True)
class Picked:
    """The runs to draw, and sentences about what was left out."""

    runs: DataFrame
    notes: tuple[str, ...]


def pick(
    records: Records, needs: Sequence[str] = ("asr",), defended: bool = True, weak: bool = False, own: bool = True
) -> Picked:
    """Measured runs in which every metric of ``needs`` is there.

    Args:
        defended: only runs with a defense.
        weak: keep runs of weak attacks, which make every defense look good, and of victims at chance.
        own: of each defense only the runs with the options that stand for it (:func:`label.own`): an ablation is
            another method.

    Raises:
        ConfigError: none is left; the message says why each was left out.
    """
    ok, notes = records.ok, []
    failed = len(records.runs) - len(ok)
    if failed:
        notes.append(f"{failed:,} failed not shown")
    if defended:
        ok = ok[ok.defense.notna()]
    there = ok[list(needs)].notna().all(axis=1)
    if (~there).any():
        clean = int(ok.attack[~there].isna().sum())
        other = int((~there).sum()) - clean
        names = ", ".join(need.upper() for need in needs)
        notes += [f"{clean:,} more, of clean networks, have no {names}"] * bool(clean)
        notes += [f"{other:,} more have no {names}"] * bool(other)
        ok = ok[there]
    kept = "included" if weak else "left out"
    flagged = np.asarray(ok.weak_attack.fillna(False).astype(bool))
    idle = chance.victims(ok) & ~flagged
    notes += [f"{int(flagged.sum()):,} {ON_WEAK} {kept}"] * bool(flagged.any())
    notes += [f"{int(idle.sum()):,} on victims at chance {kept}"] * bool(idle.any())
    ok = ok if weak else ok[~(flagged | idle)]
    if own and len(ok):
        stands = _own(ok)
        names = ", ".join(sorted(ok.defense[~stands].unique()))
        notes += [f"{int((~stands).sum()):,} with options not the method's own left out ({names})"] * bool(names)
        ok = ok[stands]
    broken = chance.purified(ok)
    if broken.any():
        names = ", ".join(sorted(ok.defense[broken].unique()))
        notes.append(f"{int(broken.sum()):,} left at chance by the defense, where ASR says nothing ({names})")
    if not len(ok):
        what = "run with a defense" if defended else "run"
        why = f" ({'; '.join(notes)})" if notes else ""
        raise ConfigError(f"no {what} has what the figure shows{why}; run some, or loosen the filter")
    return Picked(ok, (counted(len(ok), "run"), *notes))


def _own(runs: DataFrame) -> NDArray[np.bool_]:
    """Which runs have the options that stand for their defense, in their data set, preset and network."""
    labelled = labels.add(runs)
    labelled["defense"] = labelled.defense.fillna(labels.NO_DEFENSE)
    groups = labelled.groupby(["dataset", "preset", "network", "defense"]).defense_label
    chosen = groups.transform(lambda found: labels.own(found, labels.method(found.iloc[0])))
    return np.asarray(labelled.defense_label == chosen)


def label(runs: DataFrame, defense: str) -> str:
    """A defense's name; one that assumes more than clean images has a dagger."""
    return defense + DAGGER if (runs.assumes[runs.defense == defense] != "").any() else defense


def defenses(runs: DataFrame) -> list[str]:
    """The defenses in the order in which figures show them: by median ASR where there is one, blind ones first.

    Of either kind those come last that left most of their networks at chance.
    """
    groups = runs.groupby("defense", sort=True)
    order, last = groups.asr.median().fillna(2.0), chance.mostly(runs)
    assumes = groups.assumes.agg(lambda values: (values != "").any())
    return sorted(order.index, key=lambda name: (bool(assumes[name]), name in last, float(order[name]), name))


def oracles(runs: DataFrame) -> list[str]:
    """A sentence about defenses with a dagger, if there are any."""
    found = runs[runs.assumes.fillna("") != ""]
    if not len(found):
        return []
    names = {f"{row.defense} ({row.assumes.replace('+', ', ')})" for row in found.itertuples()}
    return [f"{DAGGER} assumes more than clean images, not to be ranked with the others: {', '.join(sorted(names))}"]


def pooled(runs: DataFrame, shown: Iterable[str]) -> list[str]:
    """A sentence about the settings that vary inside what a figure puts together; ``shown`` are those it shows."""
    hidden = {column: words for column, words in SETTINGS.items() if column not in set(shown)}
    if "attack" not in hidden:
        hidden.pop("attack_options", None)
    if "dataset" not in hidden:
        hidden.pop("variant", None)
    if "architecture" not in hidden:
        hidden.pop("width", None)
    parts = []
    for column, words in hidden.items():
        if column in OWNERS:
            of = runs.groupby(OWNERS[column])[column].nunique()
            names = list(of.index[of > 1])
            parts += [f"{words} of {', '.join(names)}"] * bool(names)
        elif (count := runs[column].nunique(dropna=False)) > 1:
            parts.append(f"{count} x {words}")
    return [f"Pooled over {', '.join(parts)}"] if parts else [_same(runs)]


def _same(runs: DataFrame) -> str:
    words = {"variant": "", "architecture": "", "seed": "seed ", "preset": "preset "}
    one = {column: prefix for column, prefix in words.items() if runs[column].nunique() == 1}
    return "All " + ", ".join(f"{prefix}{runs[column].iloc[0]}" for column, prefix in one.items())


def unequal(runs: DataFrame, what: str) -> list[str]:
    """A warning where the defenses were not run on the same victims and clean draws: what is shown of them (``what``)
    then differs for that reason too.
    """
    cells = runs.groupby("defense")[["victim", "regime", "repetition"]].apply(
        lambda part: frozenset(part.itertuples(index=False, name=None))
    )
    return [] if cells.nunique() == 1 else [f"The {what} of different defenses rest on different victims and draws"]


@dataclass(frozen=True)
class Facet:
    """One panel: its heading and its runs."""

    title: str
    runs: DataFrame


def facets(runs: DataFrame, columns: Sequence[str] = ("dataset", "architecture", "attack")) -> list[Facet]:
    """One panel for each combination of the columns that vary (of the last one always).

    Raises:
        ConfigError: more than :data:`MOST_PANELS`.
    """
    varying = [*(column for column in columns[:-1] if runs[column].nunique(dropna=False) > 1), columns[-1]]
    found = []
    for values, part in runs.groupby(varying, dropna=False, sort=True):
        words = [text(column, value) for column, value in zip(varying, values, strict=True)]
        found.append(Facet(", ".join(words), part))
    if len(found) > MOST_PANELS:
        some = ", ".join(f"{column}={part}" for column, part in _examples(runs, varying))
        raise ConfigError(
            f"{len(found)} panels, one for each {' and '.join(varying)}, and a page takes {MOST_PANELS}; filter: {some}"
        )
    return found


def _examples(runs: DataFrame, columns: Sequence[str]) -> list[tuple[str, str]]:
    return [(column, str(runs[column].dropna().iloc[0])) for column in columns]


def text(column: str, value: Any) -> str:
    """A value of a column as a figure names it."""
    import pandas as pd

    if pd.isna(value):
        return {"attack": "no attack", "defense": "no defense"}.get(column, "none")
    if column in ("poisoning_ratio", "effective_poisoning_ratio", "clean_ratio"):
        return f"{100 * value:g} %"
    return f"{value:g}" if isinstance(value, float) else str(value)


def ordered(values: Iterable[Any]) -> list[Any]:
    """Distinct values: numbers by size, regimes by the number in them, other texts by letter; null last."""
    import pandas as pd

    def place(value: Any) -> tuple[Any, ...]:
        if pd.isna(value):
            return (2, 0.0, "")
        if not isinstance(value, str):
            return (0, float(value), "")
        words = value.split()  # "spc 10", "clean 5%"
        number = words[-1].rstrip("%") if len(words) == 2 else ""
        is_number = number.replace(".", "", 1).isdigit()
        return (1, words[0], float(number)) if is_number else (1, value, 0.0)

    return sorted(pd.unique(pd.Series(list(values), dtype=object)), key=place)
