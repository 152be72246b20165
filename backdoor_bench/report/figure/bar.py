"""Bars: ASR and ACC by architecture (UniBP, Fig. 6), and what each defense costs in time (UNIT, Fig. 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backdoor_bench.errors import ConfigError
from backdoor_bench.report.figure import pick, style
from backdoor_bench.report.figure.box import spread
from backdoor_bench.report.figure.curve import swept
from backdoor_bench.report.frame import Records
from backdoor_bench.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

MACHINE = {"device": "", "threads": " thread(s)", "precision": "", "architecture": "", "width": " wide", "dataset": ""}
"""What seconds depend on besides the defense, and the words behind each value."""


def draw_architecture(records: Records, weak: bool = False) -> Figure:
    """ASR and ACC after each defense by architecture: bars are means, points runs."""
    picked = pick.pick(records, ("asr", "acc"), weak=weak)
    chosen = swept(picked.runs, "architecture", ["width", "victim_options"])
    if not chosen.any():
        raise ConfigError(
            "bars by architecture need runs that differ in nothing else, and these have "
            f"{', '.join(pick.ordered(picked.runs.architecture))}; run another, as in model=vgg19_bn"
        )
    left_out = [f"{int((~chosen).sum()):,} in a setting of one architecture not shown"] * bool((~chosen).any())
    runs = picked.runs[chosen]
    notes, kinds = [counted(len(runs), "run"), *picked.notes[1:], *left_out], pick.ordered(runs.architecture)
    panels, names = pick.facets(runs, ("dataset", "attack")), pick.defenses(runs)
    share = 0.8 / len(names)
    with style.printed():
        width = max(2.6, 0.6 + 0.22 * len(names) * len(kinds))
        figure, drawn = style.canvas(2, len(panels), min(width, 6), 1.7, sharex=True, sharey="row")
        for row, metric in zip(drawn, ("asr", "acc"), strict=True):
            for panel, facet in zip(row, panels, strict=True):
                for number, name in enumerate(names):
                    for at, kind in enumerate(kinds):
                        part = facet.runs[(facet.runs.defense == name) & (facet.runs.architecture == kind)]
                        _bar(panel, at - 0.4 + share * (number + 0.5), 0.9 * share, 100 * part[metric], name)
                panel.set_xticks(range(len(kinds)), [kind.replace("_", "_\n") for kind in kinds])
                panel.grid(axis="x", visible=False)
                if metric == "asr":
                    panel.set_title(facet.title)
                    panel.set_ylim(0, 104)
            row[0].set_ylabel(pick.LABELS[metric])
        handles = [style.handle(pick.label(runs, name), style.look(name), True) for name in names]
        style.legend(figure, handles)
        style.title(figure, "ASR and ACC by architecture")
        shown = ["defense", "attack", "dataset", "architecture"]
        style.footnote(figure, [*notes, "Bars: means, points: runs; no bar: not run",
                                *pick.pooled(runs, shown), *pick.oracles(runs)])  # fmt: skip
    return figure


def _bar(panel: Axes, place: float, width: float, values: Series[float], name: str) -> None:
    if not len(values):
        return
    how = style.look(name)
    panel.bar(
        place, values.mean(), width, color=style.soft(how.color), edgecolor=how.color, hatch=how.hatch, linewidth=0.8
    )
    panel.scatter(place + spread(len(values), 0.5 * width), values, s=5, color="black", linewidths=0, zorder=3)


def draw_time(records: Records) -> Figure:
    """Seconds of each defense, fastest first: bars are medians, points runs. A panel for each machine and network.

    Attack and ASR do not matter for the time, so runs of weak attacks, victims at chance and clean networks count.
    """
    picked = pick.pick(records, ("defense_seconds",), weak=True)
    runs = picked.runs
    varying = [column for column in MACHINE if runs[column].nunique(dropna=False) > 1]
    groups = [("", runs)]
    if varying:
        groups = [(_machine(varying, values), part) for values, part in runs.groupby(varying, dropna=False, sort=True)]
    if len(groups) > pick.MOST_PANELS:
        raise ConfigError(f"{len(groups)} panels, one for each {' and '.join(varying)}; filter, as in device=cuda")
    order = list(runs.groupby("defense").defense_seconds.median().sort_values().index)
    with style.printed():
        figure, drawn = style.canvas(len(groups), 1, 5.2, 0.9 + 0.2 * len(order), sharex=True)
        for (heading, part), (panel,) in zip(groups, drawn, strict=True):
            _times(panel, part, [name for name in order if name in set(part.defense)])
            panel.set_title(heading)
        drawn[-1][0].set_xlabel("seconds per run (log)")
        style.title(figure, "Time of each defense")
        shown = ["defense", "attack", "poisoning_ratio", "seed", "repetition", *MACHINE]
        load = "Bars: medians, points: runs; wall seconds as recorded, whatever else the machine did"
        where = [] if varying else ["On " + _machine(list(MACHINE), [runs[column].iloc[0] for column in MACHINE])]
        style.footnote(figure, [*picked.notes, load, *where, *pick.pooled(runs, shown), *pick.oracles(runs)])
    return figure


def _machine(columns: list[str], values: object) -> str:
    assert isinstance(values, (list, tuple))
    return ", ".join(
        f"{pick.text(column, value)}{MACHINE[column]}" for column, value in zip(columns, values, strict=True)
    )


def _times(panel: Axes, runs: DataFrame, names: list[str]) -> None:
    from matplotlib.ticker import FuncFormatter

    panel.set_xscale("log")
    for at, name in enumerate(names):
        how, seconds = style.look(name), runs.defense_seconds[runs.defense == name].to_numpy()
        seconds = np.maximum(seconds, 1e-3)
        panel.barh(at, np.median(seconds), 0.7, color=style.soft(how.color), edgecolor=how.color, hatch=how.hatch)
        crowd = len(seconds) > 500
        panel.scatter(seconds, at + spread(len(seconds), 0.3), s=6, c="black", linewidths=0, zorder=3, rasterized=crowd)
        panel.annotate(_seconds(float(np.median(seconds))), (float(seconds.max()), at), xytext=(5, 0),
                       textcoords="offset points", va="center", fontsize=6.5)  # fmt: skip
    counts = runs.defense.value_counts()
    panel.set_yticks(range(len(names)), [f"{pick.label(runs, name)} (n={counts[name]})" for name in names])
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.set_xlim(right=panel.get_xlim()[1] * 3)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else f"{value:,.0f} s"
