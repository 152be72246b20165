"""All runs as points with their density (survey, Fig. 4), and medians against FP's and FT's rectangles (Fig. 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backdoor_bench.report import chance
from backdoor_bench.report.figure import pick, style
from backdoor_bench.report.frame import Records
from backdoor_bench.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from pandas import DataFrame

PRICES = ("rdr", "arr")
BASELINES = {"fp": "--", "ft": ":"}
CELL = 2.5
"""Side of a square of the density, in percent points."""


def density(x: NDArray[np.float64], y: NDArray[np.float64], cell: float) -> NDArray[np.int64]:
    """For each point, how many points (itself too) lie in its square cell of the plane and the eight around it."""
    at = np.floor(np.stack([x, y], 1) / cell).astype(np.int64)
    at = at - at.min(0) + 1
    counts = np.zeros(at.max(0) + 2, dtype=np.int64)
    np.add.at(counts, (at[:, 0], at[:, 1]), 1)
    around = sum(counts[at[:, 0] + dx, at[:, 1] + dy] for dx in (-1, 0, 1) for dy in (-1, 0, 1))
    return np.asarray(around)


def draw_density(records: Records, weak: bool = False) -> Figure:
    """RDR and ARR against ASR, a point for each run, coloured by how many runs lie near it."""
    from matplotlib.colors import LogNorm

    picked = pick.pick(records, ("asr", *PRICES), weak=weak, own=False)
    runs = picked.runs
    x = 100 * runs.asr.to_numpy()
    with style.printed():
        figure, panels = style.canvas(1, 2, 3.2, 2.8)
        counts = [density(x, 100 * runs[price].to_numpy(), CELL) for price in PRICES]
        most = max(2, *(int(count.max()) for count in counts))
        norm = LogNorm(1, most)
        for panel, price, count in zip(panels[0], PRICES, counts, strict=True):
            order = count.argsort(kind="stable")  # the crowded ones on top
            shown = panel.scatter(
                x[order], 100 * runs[price].to_numpy()[order], c=count[order], cmap="cividis_r", norm=norm,
                s=22 if len(runs) < 500 else 6, edgecolors="black", linewidths=0.3 if len(runs) < 500 else 0,
                rasterized=len(runs) > 500,
            )  # fmt: skip
            panel.set_xlabel(pick.LABELS["asr"])
            panel.set_ylabel(pick.LABELS[price])
            panel.set_xlim(-3, 103)
        bar = figure.colorbar(shown, ax=panels[0], aspect=30)
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 1000, 10000) if tick <= most]
        bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        bar.minorticks_off()
        bar.set_label("runs near it")
        style.title(figure, "All runs: RDR and ARR against ASR")
        near = f"Near: in the square of {CELL:g} points that holds the run, or one of the eight around it"
        style.footnote(figure, [*picked.notes, counted(runs.defense.nunique(), "defense"), near,
                                *pick.pooled(runs, ["defense"])])  # fmt: skip
    return figure


def medians(runs: DataFrame) -> DataFrame:
    """Median ASR, RDR and ARR of each defense, and its n; index: defense, in the figures' order."""
    found = runs.groupby("defense")[["asr", *PRICES]].median()
    found["n"] = runs.groupby("defense").size()
    return found.loc[pick.defenses(runs)]


def better(runs: DataFrame, baseline: str) -> dict[str, int]:
    """Blind defenses that beat a baseline in median ASR, RDR and ARR at once, each over the cells that both have.

    A cell is a victim with a clean draw, so no defense gains by having been run on easier ones; and none by having left
    most networks at chance.

    Returns:
        Defense to the number of cells; those whose three medians are at most the baseline's, and lower in one.
    """
    metrics = ["asr", *PRICES]
    blind = runs[runs.assumes.fillna("") == ""]
    cells = blind.groupby(["defense", "victim", "regime", "repetition"], dropna=False)[metrics].median()
    found = {}
    for name in sorted(set(blind.defense) - {baseline, *chance.mostly(blind)}):
        ours, theirs = cells.loc[name], cells.loc[baseline]
        shared = ours.index.intersection(theirs.index)
        mine, base = ours.loc[shared].median(), theirs.loc[shared].median()
        if len(shared) and (mine <= base).all() and (mine < base).any():
            found[name] = len(shared)
    return found


def draw_medians(records: Records, weak: bool = False) -> Figure:
    """Median RDR and ARR against median ASR; a rectangle from the lower left to FP's and FT's medians."""
    picked = pick.pick(records, ("asr", *PRICES), weak=weak)
    runs = picked.runs
    points = 100 * medians(runs)
    with style.printed():
        figure, panels = style.canvas(1, 2, 3.2, 2.8)
        for panel, price in zip(panels[0], PRICES, strict=True):
            low, high = points[price].min(), points[price].max()
            floor = min(0.0, low) - 0.06 * max(high - low, 1)
            for name, dash in BASELINES.items():
                if name in points.index:
                    _rectangle(panel, points.loc[name, "asr"], points.loc[name, price], floor, dash, name)
            for name in points.index:
                how, blind = style.look(name), not pick.label(runs, name).endswith(pick.DAGGER)
                panel.scatter(
                    points.loc[name, "asr"], points.loc[name, price], s=42, marker=how.marker, linewidths=1.2,
                    color=how.color if blind else "white", edgecolors=how.color, zorder=3,
                )  # fmt: skip
            panel.set_xlabel(f"median {pick.LABELS['asr']}")
            panel.set_ylabel(f"median {pick.LABELS[price]}")
            panel.set_xlim(-4, 104)
            panel.set_ylim(floor, high + 0.06 * max(high - floor, 1))
        style.legend(figure, [_key(runs, name, int(points.loc[name, "n"] / 100)) for name in points.index])
        style.title(figure, "Median RDR and ARR against median ASR")
        style.footnote(figure, [*picked.notes, *_verdicts(runs), *pick.unequal(runs, "points"),
                                *pick.pooled(runs, ["defense"]), *pick.oracles(runs)])  # fmt: skip
    return figure


def _rectangle(panel: object, x: float, y: float, floor: float, dash: str, name: str) -> None:
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    assert isinstance(panel, Axes)
    color = style.look(name).color
    panel.add_patch(
        Rectangle((-4, floor), x + 4, y - floor, facecolor=(*to_rgb(color), 0.1), edgecolor=color, linestyle=dash)
    )


def _key(runs: DataFrame, name: str, count: int) -> object:
    from matplotlib.lines import Line2D

    how, text = style.look(name), pick.label(runs, name)
    face = "white" if text.endswith(pick.DAGGER) else how.color
    return Line2D([], [], linestyle="none", marker=how.marker, color=how.color, markerfacecolor=face,
                  label=f"{text} (n={count})")  # fmt: skip


def _verdicts(runs: DataFrame) -> list[str]:
    lines = []
    for name in BASELINES:
        if (runs.defense == name).any():
            found = ", ".join(f"{other} (n={count})" for other, count in better(runs, name).items())
            lines.append(
                f"Below {name} in all three medians, over the victims and draws that both have: {found or 'none'}"
            )
        else:
            lines.append(f"No {name} among the runs, so no rectangle of it")
    return lines
