"""Which defense beats fine-pruning and fine-tuning on ASR, RDR and ARR at once: the survey's question.

Every defense is compared with FP and FT on the same victims, clean data and repetitions (pairs). A victim's pairs
are not independent, so victims are resampled, not pairs, where there are several. Defenses that assume more than
clean data are left out, and so are weak attacks: a victim whose ASR was never high cannot rank anything, and no more
can one that is no working classifier. Nor does a defense win by leaving none (:mod:`.chance`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backdoor_bench.report import chance, label
from backdoor_bench.report.layout import AT_CHANCE, MARKS, NAMES, Cell, Column, Row, Table, lines_of, number
from backdoor_bench.report.summary import FEW, Array, interval, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

BASELINES = ("fp", "ft")
CRITERIA = ("asr", "rdr", "arr")
"""Lower is better for each."""
FEWEST = FEW
"""Victims (or pairs of one victim) below which nothing is won or lost: an interval of fewer is far too narrow."""
PAIRED = ("victim", "regime", "clean_from", "repetition")
FIELD = ("dataset", "variant", "network", "preset")
"""What rankings are made within; attacks, ratios and regimes are pooled."""


@dataclass(frozen=True)
class Verdict:
    """One criterion of one defense against one baseline; fractions, negative means the defense is better.

    Args:
        difference: mean over victims of the mean over their pairs.
        low, high: 95 % bootstrap interval; NaN for a single pair.
        result: ``win``, ``loss``, ``tie`` (the interval holds 0), or ``undecided`` (fewer than :data:`FEWEST`).
        wins, ties, losses, undecided: the same for each victim with a regime by its own pairs, counted.
    """

    difference: float
    low: float
    high: float
    result: str
    wins: int
    ties: int
    losses: int
    undecided: int


@dataclass(frozen=True)
class Duel:
    """A defense against a baseline: pairs, victims, a verdict by criterion, and both sides' medians over the pairs.

    ``at_chance``: most of the defense's networks are no working classifiers, so it beats nothing.
    """

    defense: str
    baseline: str
    pairs: int
    victims: int
    verdicts: Mapping[str, Verdict]
    medians: Mapping[str, tuple[float, float]]
    at_chance: bool = False

    @property
    def beats(self) -> bool:
        """Better in all criteria at once, beyond the uncertainty."""
        return not self.at_chance and all(verdict.result == "win" for verdict in self.verdicts.values())

    @property
    def lower_medians(self) -> bool:
        """The survey's own criterion: every median is lower. It knows no uncertainty."""
        return not self.at_chance and all(own < other for own, other in self.medians.values())


def eligible(runs: DataFrame) -> tuple[DataFrame, dict[str, int]]:
    """The runs that may be ranked, and how many were left out, by reason."""
    frame = label.add(runs)
    frame = frame[frame.defense.notna()]
    failed, weak = frame.status != "ok", frame.weak_attack.fillna(False).astype(bool)
    knows, clean, idle = frame.assumes.fillna("") != "", frame.attack.isna(), chance.victims(frame)
    out = {
        "failed": failed,
        "of a weak attack": weak & ~failed,
        "of a victim at chance": idle & ~weak,
        "that assume more than clean data": knows & ~weak & ~idle & ~failed,
        "on clean networks": clean & ~knows & ~idle & ~failed,
    }
    kept = frame[~(failed | weak | idle | knows | clean) & frame[list(CRITERIA)].notna().all(axis=1)]
    return kept, {reason: int(mask.sum()) for reason, mask in out.items() if mask.any()}


def duels(runs: DataFrame) -> list[Duel]:
    """Every defense against each baseline.

    Args:
        runs: eligible ones, of one :data:`FIELD`.
    """
    keys, found, at_chance = list(PAIRED), [], chance.mostly(runs, "defense_label")
    for baseline in filter(None, (label.own(runs.defense_label, name) for name in BASELINES)):
        base = runs[runs.defense_label == baseline].set_index(keys)[list(CRITERIA)]
        for name, own in runs[runs.defense_label != baseline].groupby("defense_label"):
            pairs = own.set_index(keys)[list(CRITERIA)].join(base, rsuffix="_base", how="inner")
            if len(pairs):
                found.append(_duel(str(name), baseline, pairs, name in at_chance))
    return found


def _duel(defense: str, baseline: str, pairs: DataFrame, at_chance: bool) -> Duel:
    keys = pairs.index.to_frame(index=False)
    victim = keys.groupby("victim").ngroup().to_numpy()
    scenario = keys.groupby(["victim", "regime"]).ngroup().to_numpy()
    verdicts, medians = {}, {}
    for criterion in CRITERIA:
        own, other = pairs[criterion], pairs[f"{criterion}_base"]
        verdicts[criterion] = _verdict((own - other).to_numpy("float64"), victim, scenario)
        medians[criterion] = (float(own.median()), float(other.median()))
    return Duel(defense, baseline, len(pairs), int(victim.max()) + 1, verdicts, medians, at_chance)


def _verdict(differences: Array, victim: NDArray[np.int64], scenario: NDArray[np.int64]) -> Verdict:
    by_victim = np.bincount(victim, differences) / np.bincount(victim)
    units = by_victim if len(by_victim) > 1 else differences
    low, high = _bounds(units)
    count, _, _, below, above = spread(differences, scenario, scenario.max() + 1)
    counts = Counter(_judged(*one) for one in zip(count, below, above, strict=True))
    result = _judged(len(units), low, high)
    return Verdict(float(units.mean()), low, high, result, *(counts[r] for r in ("win", "tie", "loss", "undecided")))


def _bounds(values: Array) -> tuple[float, float]:
    """The interval of the mean; null for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    low, high = interval(values[None])
    return float(low[0]), float(high[0])


def _judged(count: float, low: float, high: float) -> str:
    if count < FEWEST:
        return "undecided"
    return "win" if high < 0 else "loss" if low > 0 else "tie"


def tables(runs: DataFrame) -> tuple[list[Table], list[Table]]:
    """Medians and duels, a table of each for every :data:`FIELD` (no duels without a baseline)."""
    medians, against = list[Table](), list[Table]()
    fields = label.add(runs).groupby(list(FIELD), sort=True)
    for position, (field, part) in enumerate(fields):
        kept, out = eligible(part)
        if not len(kept):
            continue
        place, found = f"{field[1]}, {field[2]}, preset {field[3]}", duels(kept)
        left = ", ".join(f"{count:,} {reason}" for reason, count in out.items())
        notes = [*(_answers(found) if found else []), *([f"Runs that are not ranked: {left}."] if left else [])]
        medians.append(_medians(kept, place, notes, f"medians_{position + 1}"))
        if found:
            against.append(_duels(found, place, notes, f"ranking_{position + 1}"))
    return medians, against


def _medians(part: DataFrame, place: str, notes: list[str], name: str) -> Table:
    rows = []
    last = chance.mostly(part, "defense_label")
    for defense, runs in sorted(part.groupby("defense_label"), key=lambda one: (one[0] in last, one[1].asr.median())):
        cells: list[Cell] = [lines_of(str(defense))]
        for criterion in CRITERIA:
            low, high = np.percentile(runs[criterion], [25, 75])
            spread = (f"[{number(low)}, {number(high)}]",) if len(runs) > 1 else ()
            cells.append((number(runs[criterion].median()), *spread))
        left = int(chance.purified(runs).sum())
        marked = AT_CHANCE if left == len(runs) else f" ({left}{AT_CHANCE})" if left else ""
        rows.append(Row([*cells, (f"{len(runs)}{marked}",), (str(runs.victim.nunique()),)]))
    columns = [Column("defense", numeric=False), *(Column(NAMES[c], "median") for c in CRITERIA), Column("runs"),
               Column("victims")]  # fmt: skip
    said = ("Percent, lower is better; medians over all attacks, ratios, regimes and repetitions, [quartiles]. Not all "
            "defenses may have run on the same victims: only pairs of one victim compare like with like.")  # fmt: skip
    broken = [f"{MARKS['at_chance']}; most of a defense's so, it stands last."] * bool(chance.purified(part).any())
    return Table(name, f"Medians: {place}", columns, rows, [said, *broken, *notes])


def _duels(found: list[Duel], place: str, notes: list[str], name: str) -> Table:
    columns = [Column("defense", numeric=False), Column("against", numeric=False), Column("pairs"), Column("victims")]
    columns += [Column(f"Δ{NAMES[criterion]}") for criterion in CRITERIA]
    columns += [Column("beats at once", numeric=False), Column("medians lower", numeric=False)]
    rows = [Row(_line(duel), duel.baseline) for duel in found]
    said = (
        "Δ: mean difference in points over the same victims, clean data and repetitions, negative is better, [95 % "
        "bootstrap interval; victims resampled where there are several, else the pairs of the one, which say nothing "
        "of other victims]. w/t/l: victims with a regime won, tied and lost "
        f"by their own pairs, where any has the {FEWEST} that decide. No verdict: too few."
    )
    broken = [f"{AT_CHANCE} most of the defense's networks are at chance: it beats nothing."]
    notes = [*notes, said, *(broken if any(duel.at_chance for duel in found) else [])]
    return Table(name, f"Against fine-pruning and fine-tuning: {place}", columns, rows, notes)


def _answers(found: list[Duel]) -> list[str]:
    """The survey's question, answered."""
    beaten = {name: {label.method(d.baseline) for d in found if d.defense == name and d.beats}
              for name in dict.fromkeys(duel.defense for duel in found)}  # fmt: skip
    alone = {duel.defense for duel in found if duel.victims == 1}
    both = [f"{name} (on a single victim)" if name in alone else name
            for name, baselines in beaten.items() if baselines == set(BASELINES)]  # fmt: skip
    open_ = sorted({duel.defense for duel in found if _open(duel)})
    answer = f"Better than FP and FT on ASR, RDR and ARR at once, beyond the uncertainty: {', '.join(both) or 'none'}."
    who = "all of them" if len(open_) == len(beaten) else ", ".join(open_)
    answer += f" Too few victims or pairs to say (under {FEWEST}): {who}." if open_ else ""
    return [answer]


def _line(duel: Duel) -> list[Cell]:
    cells: list[Cell] = [lines_of(duel.defense), lines_of(duel.baseline), (str(duel.pairs),), (str(duel.victims),)]
    for criterion in CRITERIA:
        verdict = duel.verdicts[criterion]
        bounds = () if math.isnan(verdict.low) else (f"[{number(verdict.low, True)}, {number(verdict.high, True)}]",)
        result = () if verdict.result == "undecided" else (verdict.result,)
        single = f"{verdict.wins}/{verdict.ties}/{verdict.losses} w/t/l"
        counts = (single,) if verdict.wins or verdict.ties or verdict.losses else ()
        cells.append((number(verdict.difference, True), *bounds, *result, *counts))
    if duel.at_chance:
        return [*cells, (f"no {AT_CHANCE}",), (f"no {AT_CHANCE}",)]
    beats = "yes" if duel.beats else "undecided" if _open(duel) else "no"
    return [*cells, (beats,), ("yes" if duel.lower_medians else "no",)]


def _open(duel: Duel) -> bool:
    """Whether more runs could still make it beat the baseline: nothing is lost or tied yet, something is undecided."""
    results = {verdict.result for verdict in duel.verdicts.values()}
    return not duel.at_chance and "undecided" in results and results <= {"win", "undecided"}
