"""Lines over a setting: clean ratio, poisoning ratio, any swept option, and the share that was pruned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from backdoor_bench.errors import ConfigError
from backdoor_bench.report.figure import option, pick, style
from backdoor_bench.report.figure.pick import Facet
from backdoor_bench.report.frame import Records
from backdoor_bench.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from pandas import DataFrame, Series

WIDE = 20.0
"""A positive axis whose largest value is more than this many times the smallest is logarithmic."""
LEAST = 5.0
"""Points of accuracy that an axis spans at least."""
PRUNED = ("pruned", "zeroed")
OF = ("entries", "units", "features", "channels", "weights", "filters", "neurons")


def draw_clean_ratio(records: Records, weak: bool = False) -> Figure:
    """ASR and ACC against the clean ratio, a line for each defense (UniBP, Fig. 4)."""
    picked = pick.pick(records, ("asr", "acc"), weak=weak)
    runs = picked.runs[picked.runs.clean_ratio.notna()]
    spc = len(picked.runs) - len(runs)
    runs, single = _several(runs, "clean_ratio", "clean ratios", "-m +attack=badnet +defense=ft clean_ratio=0.01,0.05")
    notes = [_count(runs), *picked.notes[1:], *[f"{spc:,} at samples per class not shown"] * bool(spc), *single]
    axis = ("clean ratio, %", 100.0)
    return _curves(runs, notes, "clean_ratio", axis, "ASR and ACC against the clean ratio", ["clean_ratio", "regime"])


def draw_poisoning_ratio(records: Records) -> Figure:
    """ASR and ACC against the poisoning ratio, a line for each defense and one for the victims (UniBP, Fig. 5).

    Weak attacks are in it, and victims at chance: how weak is what the victims' line shows.
    """
    picked = pick.pick(records, ("asr", "acc"), weak=True)
    import pandas as pd

    example = "-m +attack=badnet +defense=ft attack.poisoning_ratio=0.01,0.1"
    runs, single = _several(picked.runs, "poisoning_ratio", "poisoning ratios", example)
    weak = int(runs.weak_attack.sum())
    rest = [note for note in picked.notes[1:] if pick.ON_WEAK not in note]
    notes = [_count(runs), *[f"{weak:,} of them {pick.ON_WEAK}"] * bool(weak), *rest, *single]
    victims = runs.drop_duplicates("victim").assign(defense=style.NO_DEFENSE, assumes="")
    victims = victims.assign(asr=victims.before_asr, acc=victims.before_acc)
    runs = pd.concat([runs, victims], ignore_index=True)
    axis = ("poisoning ratio, %", 100.0)
    title = "ASR and ACC against the poisoning ratio"
    return _curves(runs, notes, "poisoning_ratio", axis, title, ["poisoning_ratio"])


def draw_sensitivity(records: Records, parameter: str, weak: bool = False) -> Figure:
    """ASR and ACC against the values of one option, a panel for each defense that has it, a line for each attack.

    Args:
        parameter: as on the command line: ``defense.stages.prune.noise``, ``attack.alpha``, ``recipe.epochs``.

    Raises:
        ConfigError: no run has such an option (close matches are named), or it was never swept.
    """
    defended = parameter.startswith("defense.")
    picked = pick.pick(records, ("asr", "acc"), defended=defended, weak=weak, own=False)
    runs = picked.runs.assign(value=option.values(picked.runs, parameter))
    runs = runs[runs.value.notna()]
    runs = runs.assign(defense=runs.defense.fillna(style.NO_DEFENSE), assumes=runs.assumes.fillna(""))
    chosen = swept(runs, "value", option.settings(parameter), option.rest(runs, parameter))
    if not chosen.any():
        only = ", ".join(map(str, pick.ordered(runs.value)))
        raise ConfigError(
            f"{parameter} is {only} in these runs, and in none with all else equal is it another; sweep it first: "
            f"python -m backdoor_bench -m +attack=badnet +defense=NAME {parameter}=A,B,C"
        )
    left_out = [f"{counted(int((~chosen).sum()), 'run')} at a single value not shown"] * bool((~chosen).any())
    runs = runs[chosen]
    notes = [_count(runs), *picked.notes[1:], *left_out]
    panels = pick.facets(runs, ("dataset", "architecture", "defense"))
    title = f"ASR and ACC against {parameter}"
    return _curves(runs, notes, "value", (parameter, 1.0), title, option.settings(parameter), panels, "attack")


def draw_budget(records: Records, weak: bool = False) -> Figure:
    """ASR and ACC against the share of units that was pruned, a line for each defense (UniBP, Fig. 8).

    The share is of what the defense could have pruned, as its stage reports it; a line joins runs that differ in
    options of the stages up to that one alone, so each of its points is another budget.
    """
    picked = pick.pick(records, ("asr", "acc"), weak=weak, own=False)
    runs = picked.runs.merge(shares(records.stages), on="key").assign(budget="", rest="")
    for (options, stages), part in runs.groupby(["defense_options", "before"]):
        runs.loc[part.index, ["budget", "rest"]] = option.split(options, stages.split())
    if not len(runs):
        raise ConfigError("no run's stages report what they pruned; run one of a pruning defense: +defense=unibp")
    budgets = swept(runs, "budget", ["defense_options"], runs.rest)
    if not budgets.any():
        raise ConfigError(
            "no defense was run with several pruning budgets; sweep one: "
            "python -m backdoor_bench -m +attack=badnet +defense=unibp defense.stages.mask.k=0.01,0.05,0.1"
        )
    runs = runs[budgets]
    # Runs of one budget stand at its mean share, or the line would run back and forth over repetitions.
    runs["share"] = (
        runs.groupby(["dataset", "architecture", "attack", "defense_options"]).share.transform("mean").round(9)
    )
    notes = [_count(runs), *picked.notes[1:], "Share of what the defense ranks: " + _denominators(runs)]
    axis = ("pruned, %", 100.0)
    title = "ASR and ACC against the pruning budget"
    return _curves(runs, notes, "share", axis, title, ["defense_options"])


def _count(runs: DataFrame) -> str:
    return counted(len(runs), "run")


def shares(stages: DataFrame) -> DataFrame:
    """``key share unit before``: of each run the share that its last pruning stage pruned, from the stage's report, and
    the names of the stages up to that one.
    """
    import pandas as pd

    found, before = {}, dict[str, str]()
    for row in stages.sort_values("position").itertuples():
        report = json.loads(row.report)
        before[row.key] = f"{before.get(row.key, '')} {row.stage}".strip()
        part = next((report[name] for name in PRUNED if name in report), None)
        unit = next((name for name in OF if name in report and (name != "neurons" or "weights" not in report)), None)
        if part is not None and unit is not None and report[unit]:
            found[row.key] = (row.key, part / report[unit], unit, before[row.key])
    return pd.DataFrame(list(found.values()), columns=["key", "share", "unit", "before"])


def _denominators(runs: DataFrame) -> str:
    pairs = sorted({(row.defense, row.unit) for row in runs.itertuples()})
    return ", ".join(f"{unit} ({defense})" for defense, unit in pairs)


def swept(runs: DataFrame, column: str, free: Sequence[str] = (), rest: Series[str] | None = None) -> NDArray[np.bool_]:
    """Which runs have a counterpart in the same setting with another value of ``column``.

    So a line never mixes what was swept with another thing that was. Seeds and repetitions may differ.

    Args:
        free: settings that change together with ``column``.
        rest: what stays of these settings without ``column``.
    """
    same = [name for name in pick.SETTINGS if name not in (column, "seed", "repetition", *free)]
    keys = [runs[name] for name in ("defense", *same)] + ([] if rest is None else [rest])
    return np.asarray(runs[column].groupby(keys, dropna=False).transform("nunique") > 1)


def _several(runs: DataFrame, column: str, words: str, example: str) -> tuple[DataFrame, list[str]]:
    """The runs in settings that were run at two values or more, and a note on the others."""
    chosen = swept(runs, column, ["regime"] if column == "clean_ratio" else [])
    if not chosen.any():
        have = ", ".join(pick.text(column, value) for value in pick.ordered(runs[column])) or "none"
        raise ConfigError(
            f"a line needs one defense and attack at two {words} or more, all else equal, and these runs have {have}; "
            f"sweep them: python -m backdoor_bench {example}"
        )
    return runs[chosen], [f"{int((~chosen).sum()):,} at a single one of the {words} not shown"] * bool((~chosen).any())


def _curves(
    runs: DataFrame,
    notes: Sequence[str],
    column: str,
    axis: tuple[str, float],
    title: str,
    shown: Sequence[str],
    panels: Sequence[Facet] | None = None,
    lines: str = "defense",
) -> Figure:
    """Rows ASR and ACC, columns the facets; a line through the means, a point for each run."""
    panels = pick.facets(runs) if panels is None else panels
    words, factor = axis
    names = pick.defenses(runs) if lines == "defense" else sorted(runs[lines].unique())
    if style.NO_DEFENSE in names:
        names = [name for name in names if name != style.NO_DEFENSE] + [style.NO_DEFENSE]
    place, ticks = _axis(runs[column], factor)
    with style.printed():
        figure, drawn = style.canvas(2, len(panels), 2.6 if len(panels) > 1 else 3.4, 1.7, sharex=True, sharey="row")
        for row, metric in zip(drawn, ("asr", "acc"), strict=True):
            for panel, facet in zip(row, panels, strict=True):
                for name in names:
                    _line(panel, facet.runs[facet.runs[lines] == name], column, metric, place, name)
                if metric == "asr":
                    panel.set_title(facet.title)
                    panel.set_ylim(-4, 104)
                ticks(panel)
            row[0].set_ylabel(pick.LABELS[metric])
        _no_less(drawn[-1][0])
        for panel in drawn[-1]:
            panel.set_xlabel(words)
        labels = {name: pick.label(runs, name) if lines == "defense" else name for name in names}
        style.legend(figure, [style.handle(labels[name], style.look(name)) for name in names])
        style.title(figure, title)
        measured = runs[runs.defense != style.NO_DEFENSE] if lines == "defense" else runs
        told = ["defense", "attack", "dataset", "architecture", *shown]
        style.footnote(figure, [*notes, "Lines: means, points: runs", *pick.pooled(measured, told),
                                *pick.oracles(measured)])  # fmt: skip
    return figure


def _line(panel: Axes, runs: DataFrame, column: str, metric: str, place: Callable[[Any], float], name: str) -> None:
    if not len(runs):
        return
    how, x, y = style.look(name), np.array([place(value) for value in runs[column]]), 100 * runs[metric].to_numpy()
    at = np.unique(x)
    dash = "none" if _are_words(runs[column]) else how.dash
    panel.plot(at, [y[x == one].mean() for one in at], color=how.color, linestyle=dash, marker=how.marker or None)
    panel.scatter(x, y, s=5, color=how.color, alpha=0.5, linewidths=0)


def _no_less(panel: Axes) -> None:
    """An axis of at least :data:`LEAST` points, so that a few images more or less do not look like an effect."""
    low, high = panel.get_ylim()
    if high - low < LEAST:
        top = min((low + high + LEAST) / 2, max(high, 100.25))
        panel.set_ylim(top - LEAST, top)


def _are_words(values: Series[Any]) -> bool:
    return any(isinstance(value, (str, bool)) for value in values)


def _axis(values: Series[Any], factor: float) -> tuple[Callable[[Any], float], Callable[[Axes], None]]:
    """Where a value stands on the horizontal axis, and what sets the axis up: numbers by size, words side by side."""
    distinct = pick.ordered(values)
    if _are_words(values):
        order = {value: float(number) for number, value in enumerate(distinct)}

        def side_by_side(panel: Axes) -> None:
            panel.set_xticks(list(order.values()), [str(value) for value in order])
            panel.set_xlim(-0.4, len(order) - 0.6)

        return order.__getitem__, side_by_side
    numbers = [factor * float(value) for value in distinct]

    def by_size(panel: Axes) -> None:
        if min(numbers) > 0 and max(numbers) / min(numbers) > WIDE:
            panel.set_xscale("log")
        if len(numbers) <= 7:
            panel.set_xticks(numbers, [f"{number:.3g}" for number in numbers])
            panel.minorticks_off()

    return lambda value: factor * float(value), by_size
