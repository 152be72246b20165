"""Published beside measured: a paper's table with ours in it, the difference, and where ours was made otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import backdoor_bench
from backdoor_bench.report import label, published
from backdoor_bench.report.layout import MARKS, NAMES, Cell, Column, Row, Table, counted, number, value

if TYPE_CHECKING:
    from pandas import DataFrame

HERE = ("dataset", "architecture", "poisoning_ratio", "clean_data", "attack", "defense", "setting")
HEADS = {"architecture": "network", "poisoning_ratio": "poisoned", "clean_data": "clean data"}
UNITS = {"poisoning_ratio": " poisoned", "clean_data": " clean data"}
DIFFERENCES = ("acc", "asr")
FARTHER = 2
"""Of our other settings of a defense so many stand in the remarks; all are in the tables of what was measured."""


def tables(cells: DataFrame) -> Iterator[Table]:
    """Every published table of which we have something: those rows alone."""
    ours = published.Ours(cells)
    for name in published.names():
        found = _table(name, ours, only_ours=True)
        if found.rows:
            yield found


def table(name: str, cells: DataFrame | None = None) -> Table:
    """A whole published table, ours beside it where there is something.

    Raises:
        ConfigError: no such table; close matches are named.
    """
    return _table(name.replace("_table", "_"), None if cells is None else published.Ours(cells), only_ours=False)


def _table(name: str, ours: published.Ours | None, only_ours: bool) -> Table:
    about, rows = published.table(name)
    lines = [(row, list(ours.matches(row)) if ours else []) for row in _ordered(rows)]
    compared = any(matches for _, matches in lines)
    shown = [(row, matches) for row, matches in lines if matches or not only_ours]
    # What is the same in the whole table stands above it.
    varying = [c for c in HERE if c in ("attack", "defense") or rows[c].nunique(dropna=c != "setting") > 1]
    metrics = [m for m in published.METRICS if rows[f"{m}_mean"].notna().any()]
    columns = [Column(HEADS.get(c, c), numeric=False) for c in varying]
    columns += [Column(NAMES[m], "published") for m in metrics]
    if compared:
        columns += [*(Column(NAMES[m], "ours") for m in metrics), Column("n", "ours")]
        columns += [Column(NAMES[m], "ours - published") for m in DIFFERENCES if m in metrics]
    legend = _Legend()
    columns.append(Column("remarks", numeric=False))
    body = []
    for row, matches in shown:
        first: list[Cell] = [_place(row[c], c) for c in varying]
        printed = [_printed(row, m) for m in metrics]
        noted = [f"see [{n}]" for n in legend.add(published.remarks(row))]
        section = " ".join(str(row[c]) for c in varying if c not in ("defense", "setting"))
        for position, match in enumerate(matches or [None]):
            start = [*first, *printed] if position == 0 else [("",)] * len(first + printed)
            compare = _compared(row, match, metrics, legend) if compared else []
            remark = noted if position == 0 else []
            body.append(Row([*start, *(compare[:-1] if compare else []), (*remark, *(compare[-1] if compare else ()))
                             or ("",)], section))  # fmt: skip
    fixed = ", ".join(
        _place(rows[c].dropna().iloc[0], c)[0] + UNITS.get(c, "")
        for c in HERE
        if c not in varying and rows[c].notna().any()
    )
    title = f"{about['paper']}, {_called(about['table'])}: {about['title']} ({fixed})"
    cells = [match.cell for _, matches in lines for match in matches]
    said = [f"{text}." for column, text in MARKS.items() if any(cell[column] for cell in cells)]
    return Table(
        f"published_{name}", title, columns, body, [*_notes(name, compared), *said, *legend.lines()], whole=True
    )


def _ordered(rows: DataFrame) -> list[dict[str, Any]]:
    """Attack by attack within a block, in the printed order, the victim first."""
    places = {c: {v: n for n, v in enumerate(rows[c].fillna("").unique())} for c in HERE}
    keys = ("dataset", "architecture", "poisoning_ratio", "clean_data", "attack")
    kept = rows.to_dict("records")
    return sorted(kept, key=lambda row: [places[c]["" if row[c] != row[c] else row[c]] for c in keys])


def _compared(row: Mapping[str, Any], match: published.Match | None, metrics: Sequence[str], legend: _Legend
              ) -> list[Cell]:  # fmt: skip
    kept = [m for m in DIFFERENCES if m in metrics]
    if match is None:
        return [("",)] * (len(metrics) + 1 + len(kept)) + [()]
    cell = match.cell
    same = not match.other and cell["n"] > 0
    differences = [_difference(row[f"{m}_mean"], cell[f"{m}_mean"]) if same else ("-",) for m in kept]
    words = [f"{published.OTHER[kind]} [{legend.number(why)}]" for kind, why in match.other.items()]
    words += [f"caveat [{legend.number(why)}]" for why in match.caveats] if same else []
    words += ["made as [" + "] [".join(str(n) for n in legend.add(match.settings)) + "]"]
    words += [f"farther: {_brief(c, metrics)} [{legend.number(_as_made(c))}]" for c in match.farther[:FARTHER]]
    more = len(match.farther) - FARTHER
    words += [f"and {more} more settings of it"] * (more > 0)
    own = [value(cell, m) if m != "der" or row["defense"] != "none" else ("",) for m in metrics]
    return [*own, counted(cell), *differences, tuple(words)]


def _brief(cell: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """A cell in half a line."""
    means = ", ".join(f"{NAMES[m]} {number(cell[f'{m}_mean'])}" for m in metrics if m in DIFFERENCES)
    return f"{means}, n = {cell['n']}"


def _as_made(cell: Mapping[str, Any]) -> str:
    name = str(cell["defense_label"])
    return name if label.options(name) else f"{name} as configured"


def _printed(row: Mapping[str, Any], metric: str) -> Cell:
    mean, std, again = (
        row[f"{metric}_mean"],
        row.get(f"{metric}_std", math.nan),
        row.get(f"recomputed_{metric}", math.nan),
    )
    if math.isnan(mean):
        return ("",)
    spread = () if math.isnan(std) else (f"± {std:.2f}",)
    return (f"{mean:.2f}", *spread, *(() if math.isnan(again) else (f"recomputed {again:.2f}",)))


def _difference(printed: float, ours: float) -> Cell:
    return ("-",) if math.isnan(printed) or math.isnan(ours) else (f"{100 * ours - printed:+.2f}",)


def _place(found: Any, column: str) -> Cell:
    if not isinstance(found, str):
        return ("",) if found is None or math.isnan(found) else (f"{100 * found:g} %",)
    if column == "clean_data":
        kind, _, amount = found.partition(":")
        return (f"spc {amount}" if kind == "spc" else f"{100 * float(amount):g} %",)
    return ("victim" if column == "defense" and found == "none" else found,)


def _called(number: str) -> str:
    if number.startswith("fig"):
        return f"Figure {number[3:]}"
    return f"Section {number[6:]}" if number.startswith("prose_") else f"Table {number}"


def _notes(name: str, compared: bool) -> list[str]:
    notes = ["Published values in percent, as printed; 'recomputed' is what the table's own rows give."]
    if compared:
        notes.append("Ours: mean in percent over n runs. Differences in points, only where ours is the same object.")
    else:
        paper, _, number = name.partition("_")
        sweep = f"{paper}_table{number}" if number.isdigit() else name
        there = any((root / "multirun_sweeps" / "sweep" / f"{sweep}.yaml").is_file() for root in _roots())
        run = f"; make some: python -m backdoor_bench +sweep={sweep}" if there else ""
        notes.append(f"No run of ours corresponds to a row of it yet{run}.")
    return notes


def _roots() -> Iterator[Path]:
    package = Path(backdoor_bench.__file__).parent
    yield from (package, package.parent)


class _Legend:
    """Numbered remarks; one that comes again keeps its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers) + 1)

    def add(self, texts: Sequence[str]) -> list[int]:
        return [self.number(text) for text in texts]

    def lines(self) -> list[str]:
        return [f"[{number}] {text}" for text, number in self._numbers.items()]
