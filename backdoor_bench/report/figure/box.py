"""Box plots of ASR, RDR and ARR by defense, over everything or split by a column (survey, Figs. 3 and 6 to 15)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from backdoor_bench.errors import ConfigError
from backdoor_bench.report.figure import pick, style
from backdoor_bench.report.figure.style import Look
from backdoor_bench.report.frame import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from pandas import DataFrame

METRICS = ("asr", "rdr", "arr")
FEWEST_FOR_A_BOX = 5
"""Below this, quartiles say nothing that the points do not: only points and their median are drawn."""
MOST_GROUPS = 8
CONSISTENCY = "consistency"


def draw(records: Records, by: str | None = None, weak: bool = False) -> Figure:
    """A panel for each of ASR, RDR and ARR; a box for each defense, or for each value of ``by`` in each defense.

    Boxes: quartiles and median; whiskers: the furthest run within 1.5 interquartile ranges; every run is a point.

    Args:
        by: a column of the records, or ``consistency``: static and dynamic triggers (survey, Fig. 12).

    Raises:
        ConfigError: no run to show, or ``by`` has one value or too many.
    """
    picked = pick.pick(records, METRICS, weak=weak)
    runs = picked.runs
    if by == CONSISTENCY:
        runs = runs.assign(consistency=consistency(runs))
    groups = _groups(runs, by)
    names = pick.defenses(runs)
    looks = {name: style.look(name) for name in names}
    if by is not None:
        own = [style.look(str(value)) for value in groups] if by == "attack" else style.steps(len(groups))
        looks = {pick.text(by, value): how for value, how in zip(groups, own, strict=True)}
    cut: list[str] = []
    with style.printed():
        width = max(4.2, 0.5 + len(names) * max(0.65, 0.16 * len(groups)))
        figure, panels = style.canvas(len(METRICS), 1, min(width, 11), 1.5, sharex=True)
        for row, metric in zip(panels, METRICS, strict=True):
            for at, name in enumerate(names):
                part = runs[runs.defense == name]
                for number, value in enumerate(groups):
                    chosen = part if by is None else part[_equal(part, by, value)]
                    how = looks[name if by is None else pick.text(by, value)]
                    share = 0.8 / len(groups)
                    place = at - 0.4 + share * (number + 0.5)
                    _box(row[0], 100 * chosen[metric].to_numpy(), place, 0.8 * share, how)
            row[0].set_ylabel(pick.LABELS[metric])
            row[0].grid(axis="x", visible=False)
            for at in range(1, len(names)):
                row[0].axvline(at - 0.5, color="#DDDDDD", linewidth=0.5)
            if metric == "asr":
                row[0].set_ylim(-4, 104)
            else:
                cut += _cut(row[0], runs, metric)
        counts = runs.defense.value_counts()
        turned = 45 if len(names) * 0.6 > figure.get_figwidth() else 0
        breaks = "_" if turned else "_\n"
        ticks = [f"{pick.label(runs, name)}".replace("_", breaks) + f"\nn={counts[name]}" for name in names]
        panels[-1][0].set_xticks(range(len(names)), ticks, rotation=turned, ha="right" if turned else "center")
        panels[-1][0].set_xlim(-0.6, len(names) - 0.4)
        if by is not None:
            boxes = bool(runs.groupby(["defense", by], dropna=False).size().max() >= FEWEST_FOR_A_BOX)
            key = style.boxed if boxes else style.handle
            style.legend(figure, [key(text, replace(how, dash="none")) for text, how in looks.items()], _words(by))
        style.title(figure, "ASR, RDR and ARR by defense" + (f" and {_words(by)}" if by else ""))
        shown = ["defense", *([by] if by else []), *(["attack"] if by == CONSISTENCY else [])]
        few = f"Lower is better; no box over fewer than {FEWEST_FOR_A_BOX} runs, the bar is their median"
        style.footnote(figure, [*picked.notes, *cut, few, *pick.unequal(runs, "boxes"), *pick.pooled(runs, shown),
                                *pick.oracles(runs)])  # fmt: skip
    return figure


def _cut(panel: Axes, runs: DataFrame, metric: str) -> list[str]:
    """Ends a panel's axis before the few runs above or below that would press all others flat; says which they are."""
    values = 100 * runs[metric]
    low, high = (float(values.quantile(share)) for share in (0.05, 0.95))
    reach = 2 * max(high - low, 0.5)
    above, below = values > high + reach, values < low - reach
    if not (above | below).any():
        return []
    rest = values[~(above | below)]
    margin = 0.08 * max(float(rest.max() - rest.min()), 1.0)
    panel.set_ylim(float(rest.min()) - margin, float(rest.max()) + margin)
    lines = []
    for words, far in (("Above", values[above].sort_values(ascending=False)), ("Below", values[below].sort_values())):
        names = ", ".join(f"{runs.defense[at]} {value:.0f} %" for at, value in far[:3].items())
        more = f" and {len(far) - 3:,} more" if len(far) > 3 else ""
        lines += [f"{words} the {metric.upper()} axis: {names}{more}"] * bool(len(far))
    return lines


def _box(panel: Axes, values: NDArray[np.float64], place: float, width: float, how: Look) -> None:
    if not len(values):
        return
    if len(values) >= FEWEST_FOR_A_BOX:
        panel.boxplot(
            values, positions=[place], widths=width, manage_ticks=False, showfliers=False, patch_artist=True,
            boxprops={"facecolor": style.soft(how.color), "edgecolor": how.color, "hatch": how.hatch, "linewidth": 0.8},
            medianprops={"color": "black", "linewidth": 1.2}, whiskerprops={"color": how.color, "linewidth": 0.8},
            capprops={"color": how.color, "linewidth": 0.8},
        )  # fmt: skip
    elif len(values) > 1:
        half = width / 2
        panel.plot([place - half, place + half], [np.median(values)] * 2, color="black", linewidth=1.2, zorder=4)
    panel.scatter(
        place + spread(len(values), 0.7 * width), values, s=14, color=how.color, marker=how.marker or ".",
        edgecolors="black", linewidths=0.3, zorder=3, rasterized=len(values) > 500,
    )  # fmt: skip


def spread(count: int, width: float) -> NDArray[np.float64]:
    """(count,) offsets in [-width/2, width/2] that keep points apart: the golden ratio's multiples, no random draw."""
    return np.asarray(((0.5 + np.arange(count) * 0.6180339887498949) % 1 - 0.5) * width, dtype=np.float64)


def consistency(runs: DataFrame) -> list[str | None]:
    """``static`` or ``dynamic`` for each run's attack, from its class; None for one that is not in the package."""
    import json

    from backdoor_bench.attack import Attack
    from backdoor_bench.errors import UntrustedError
    from backdoor_bench.trust import trusted_class

    known: dict[str, str | None] = {}
    for options in runs.attack_options.unique():
        try:  # a record is somebody's file
            known[options] = trusted_class(str(json.loads(options).get("_target_")), Attack).taxonomy.consistency
        except (UntrustedError, AttributeError):
            known[options] = None
    return [known[options] for options in runs.attack_options]


def _groups(runs: DataFrame, by: str | None) -> Sequence[object]:
    if by is None:
        return [None]
    if by not in runs:
        from backdoor_bench.errors import unknown

        raise unknown("column", by, [column for column in runs if column in pick.SETTINGS or column == "consistency"])
    values = pick.ordered(runs[by])
    if not 2 <= len(values) <= MOST_GROUPS:
        have = ", ".join(pick.text(by, value) for value in values[:MOST_GROUPS])
        raise ConfigError(
            f"split by {by}: these runs have {len(values)} ({have}), and the figure takes 2 to {MOST_GROUPS}; "
            + ("leave the split out, or run others" if len(values) < 2 else "filter")
        )
    return values


def _equal(runs: DataFrame, by: str, value: object) -> NDArray[np.bool_]:
    import pandas as pd

    column = runs[by]
    return np.asarray(column.isna() if pd.isna(value) else (column == value).fillna(False), dtype=bool)


def _words(by: str) -> str:
    return {CONSISTENCY: "trigger"}.get(by, pick.SETTINGS.get(by, by))
