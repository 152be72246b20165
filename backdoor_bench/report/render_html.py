"""One self-contained page: tables to read, and all cells to filter, sort and hover. It needs no network.

Strings of records reach the page as escaped text or inside a JSON block, and the script sets text, never markup; a
content security policy lets no other script run. Up to :data:`MOST_RUNS` runs are in it one by one, always the cells.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_bench.errors import ConfigError
from backdoor_bench.report import label
from backdoor_bench.report.layout import NAMES, PRIVILEGED, Table
from backdoor_bench.report.render_text import plain
from backdoor_bench.report.summary import METRICS

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDER = Path(__file__).parent / "page"
MOST_RUNS = 3000
MOST_CELLS = 30_000
"""More would make a page of over 10 MB."""
VICTIM = "none (victim)"
FIELDS = {"attack": "attack", "defense": "defense", "data": "data", "network": "network", "poisoned": "poisoned",
          "clean": "clean data", "preset": "preset"}  # fmt: skip
OWN = {"seed": "seed", "repetition": "repetition", "key": "run", "reason": "failed because"}


def page(
    parts: Sequence[tuple[str, Sequence[Table]]], notes: Sequence[str], cells: DataFrame, runs: DataFrame,
    title: str = "backdoor_bench: results",
) -> str:  # fmt: skip
    """The page.

    Args:
        parts: headings with the tables to print below the explorer.
        cells: of :func:`summary.cells`.
        runs: of :class:`frame.Records`.

    Raises:
        ConfigError: too many cells for a page.
    """
    import jinja2
    from markupsafe import Markup

    if len(cells) > MOST_CELLS:
        raise ConfigError(
            f"{len(cells):,} cells, and a page takes {MOST_CELLS:,}; filter, as in dataset=cifar10 preset=published"
        )
    script, style = ((FOLDER / f"page.{kind}").read_text() for kind in ("js", "css"))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((FOLDER / "page.html").read_text())
    return template.render(
        title=plain(title),
        notes=[plain(note) for note in notes],
        parts=[(heading, [_static(table) for table in tables]) for heading, tables in parts],
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        script=Markup(script),
        data=Markup(safe_json(explorer(cells, runs))),
    )


def safe_json(value: Any) -> str:
    """JSON that can stand in a script element: no character of it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def explorer(cells: DataFrame, runs: DataFrame) -> dict[str, Any]:
    """What the page's script reads: rows as arrays, equal texts once, percent with two digits."""
    texts: dict[str, int] = {}
    single = None
    if len(runs) <= MOST_RUNS:
        single = [[*_fields(run, texts), *_single(run)] for run in label.add(runs).to_dict("records")]
    rows = [[*_fields(cell, texts), *_counts(cell), *(_metric(cell, m) for m in METRICS)]
            for cell in cells.to_dict("records")]  # fmt: skip
    return {
        "columns": [*FIELDS, "n", "weak", "at_chance", "failed", *METRICS, *OWN],
        "fields": list(FIELDS),
        "own": list(OWN),
        "names": {**FIELDS, **OWN, **NAMES, "n": "n"},
        "looks": _looks(cells),
        "texts": list(texts),
        "cells": rows,
        "runs": single,
    }


def _looks(cells: DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker of every defense, as the figures have them."""
    from backdoor_bench.report.figure import style

    found = {}
    for cell in cells.drop_duplicates(["defense_label", "assumes"]).to_dict("records"):
        victim = cell["defense_label"] == label.NO_DEFENSE
        how = style.look(style.NO_DEFENSE if victim else label.method(cell["defense_label"]))
        found[plain(_defense(cell))] = (how.color, how.marker)
    return found


def _defense(row: Mapping[str, Any]) -> str:
    if row["defense_label"] == label.NO_DEFENSE:
        return VICTIM
    return f"{row['defense_label']}{PRIVILEGED if row['assumes'] else ''}"


def _fields(row: Mapping[str, Any], texts: dict[str, int]) -> list[int]:
    ratio, regime, preset = row["poisoning_ratio"], row["regime"], row["preset"]
    found = (
        row["attack_label"],
        _defense(row),
        row["variant"],
        row["network"],
        "no" if math.isnan(ratio) else f"{100 * ratio:g} %",
        regime.replace("clean ", "").replace("%", " %") if isinstance(regime, str) else "no defense",
        preset,
    )
    return [texts.setdefault(plain(str(text)), len(texts)) for text in found]


def _counts(cell: Mapping[str, Any]) -> list[int]:
    return [int(cell[name]) for name in ("n", "weak", "at_chance", "failed")]


def _metric(cell: Mapping[str, Any], metric: str) -> float | list[float | None] | None:
    mean = _percent(cell[f"{metric}_mean"])
    if mean is None or math.isnan(cell[f"{metric}_std"]):
        return mean
    return [mean, *(_percent(cell[f"{metric}_{name}"]) for name in ("std", "low", "high"))]


def _single(run: Mapping[str, Any]) -> list[Any]:
    ok = run["status"] == "ok"
    reason = run["reason"] if isinstance(run["reason"], str) else None
    at_chance = run["at_chance"] is True or run["victim_at_chance"] is True
    return [int(ok), int(run["weak_attack"] is True), int(at_chance), int(not ok), *(_percent(run[m]) for m in METRICS),
            run["seed"], run["repetition"], run["key"], reason and plain(reason)]  # fmt: skip


def _percent(fraction: float) -> float | None:
    return None if math.isnan(fraction) else round(100 * fraction, 2)


def _static(table: Table) -> dict[str, Any]:
    """A table as the template walks through it."""
    rows = []
    for position, row in enumerate(table.rows):
        rule = position > 0 and row.section != table.rows[position - 1].section
        cells = [(tuple(plain(line) for line in cell), column)
                 for cell, column in zip(row.cells, table.columns, strict=True)]  # fmt: skip
        rows.append({"cells": cells, "rule": rule})
    groups = [(plain(group), len(list(members))) for group, members in groupby(c.group for c in table.columns)]
    return {
        "name": table.name,
        "title": plain(table.title),
        "notes": [plain(note) for note in table.notes],
        "columns": table.columns,
        "groups": groups,
        "grouped": any(column.group for column in table.columns),
        "rows": rows,
    }
