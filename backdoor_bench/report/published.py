"""Published figures: what five papers print, what follows from their own rows, and where they can be compared.

``published/results.csv`` holds the values as printed, slips included. Percent, as printed; ours are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_bench.errors import unknown
from backdoor_bench.report import label

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDER = Path(__file__).parent / "published"
METRICS = ("acc", "asr", "ra", "der")
TOLERANCE = 0.02
"""Points by which a recomputed DER or average may differ from the printed one through rounding alone."""
OTHER = {"architecture": "other network", "attack": "other trigger", "defense": "other method"}
Found = Mapping[str, Any]


@cache
def read(name: str) -> DataFrame:
    """A shipped CSV; an empty field is null."""
    import pandas as pd

    texts = {"table": "str", "when": "str", "published": "str", "setting": "str", "ours": "str", "option": "str"}
    return pd.read_csv(FOLDER / f"{name}.csv", dtype=texts)


def names() -> list[str]:
    """Every published table with metrics in it, as ``--table`` takes it: ``unibp_1``."""
    results = read("results")
    filled = results[results.acc_mean.notna() | results.asr_mean.notna()]
    return list(dict.fromkeys(filled.paper + "_" + filled.table))


@cache
def table(name: str) -> tuple[Found, DataFrame]:
    """A published table by name (``unibp_1``, or as its sweep is called, ``unibp_table1``).

    Returns:
        Its row of ``tables.csv``, and its rows with ``recomputed_acc _asr _der`` added; do not change them.

    Raises:
        ConfigError: no table of this name holds metrics.
    """
    name = name.replace("_table", "_")
    if name not in names():
        raise unknown("published table", name, names())
    paper, _, number = name.partition("_")
    about, results = read("tables"), read("results")
    found = results[(results.paper == paper) & (results.table == number)].reset_index(drop=True)
    described = about[(about.paper == paper) & (about.table == number)]
    return described.iloc[0].to_dict(), recomputed(found)


def recomputed(rows: DataFrame) -> DataFrame:
    """Adds what a table's own rows give: DER from ACC and ASR, averages from their parts; null where they agree.

    Args:
        rows: of one table.
    """
    rows = rows.copy()
    block = ["dataset", "architecture", "poisoning_ratio", "clean_data", "setting"]
    filled = rows[block].fillna("").astype(str)
    average, der = rows.attack == "average", rows.der_mean.copy()
    for position in rows.index[~average & rows.der_mean.notna()]:
        row = rows.loc[position]
        same = (rows.attack == row.attack) & (rows.defense == "none") & (rows.dataset == row.dataset)
        same &= (rows.architecture == row.architecture) & (rows.poisoning_ratio == row.poisoning_ratio)
        victim = rows[same & rows.clean_data.fillna(row.clean_data).eq(row.clean_data)]
        if len(victim):
            before = victim.iloc[0]
            asr_drop, acc_drop = before.asr_mean - row.asr_mean, before.acc_mean - row.acc_mean
            der[position] = 50 * ((max(0, asr_drop) - max(0, acc_drop)) / 100 + 1)
    for position in rows.index[average]:
        parts = (filled == filled.loc[position]).all(axis=1) & (rows.defense == rows.defense[position]) & ~average
        for metric in ("acc", "asr"):
            rows.loc[position, f"recomputed_{metric}"] = rows.loc[parts, f"{metric}_mean"].mean()
        der[position] = der[parts].mean()
    rows["recomputed_der"] = der
    for metric in ("acc", "asr", "der"):
        if f"recomputed_{metric}" not in rows:
            rows[f"recomputed_{metric}"] = math.nan
        agrees = (rows[f"recomputed_{metric}"] - rows[f"{metric}_mean"]).abs() <= TOLERANCE
        rows.loc[agrees | rows[f"{metric}_mean"].isna(), f"recomputed_{metric}"] = math.nan
    return rows


@cache
def _records(name: str) -> list[dict[str, Any]]:
    """A shipped CSV as dictionaries; null is None."""
    found = read(name)
    return found.astype(object).where(found.notna(), None).to_dict("records")


def remarks(row: Found) -> list[str]:
    """What is doubtful about a published row, and its own note."""
    columns = ("paper", "table", "clean_data", "attack", "defense")
    known = [r["remark"] for r in _records("remarks") if all(r[c] is None or r[c] == row[c] for c in columns)]
    return [*([row["note"]] if isinstance(row.get("note"), str) else []), *known]


@dataclass(frozen=True)
class Match:
    """A cell of ours beside a published row.

    Args:
        cell: of :func:`summary.cells`.
        other: why ours is not the same object, by kind (``attack``); empty: it is, and a difference has a meaning.
        caveats: what may still set them apart.
        settings: where ours was made in another way than the published one.
        farther: cells of ours that differ from this one in the defense's options alone, and are farther from the
            published ones.
    """

    cell: Found
    other: Mapping[str, str]
    caveats: tuple[str, ...]
    settings: tuple[str, ...]
    farther: tuple[Found, ...] = ()


class Ours:
    """Our cells, ready to be looked up for published rows."""

    def __init__(self, cells: DataFrame) -> None:
        self._by_name: dict[tuple[str, str, str], list[Found]] = {}
        for cell in cells.to_dict("records"):
            attack = cell["attack"] if isinstance(cell["attack"], str) else "none"
            defense = cell["defense"] if isinstance(cell["defense"], str) else "none"
            self._by_name.setdefault((cell["dataset"], attack, defense), []).append(cell)

    def matches(self, row: Found) -> Iterator[Match]:
        """Cells with a published row's data set, network, attack, poisoning ratio, clean data and defense.

        Of several that differ in the defense's options alone there is one: that which differs in the fewest from the
        published, then the method's own, then that of the most runs. Victims come in the same order, each.
        """
        asked = _setting(row)
        if asked is None:
            return
        found = []
        for objects in product(*(_objects(row, kind) for kind in OTHER)):
            network, attack, defense = (known["ours"] for known in objects)
            cells = [
                c for c in self._by_name.get((row["dataset"], attack, defense), ()) if c["architecture"] == network
            ]
            cells = [c for c in cells if _same_ratio(row["poisoning_ratio"], c["poisoning_ratio"])]
            if row["defense"] != "none":
                cells = [c for c in cells if _same_clean(row["clean_data"], c)]
                cells = [c for c in cells if not asked or holds(asked, label.flat(c["defense_options"]))]
            groups: dict[tuple[str, ...], list[Found]] = {}
            for cell in cells:
                groups.setdefault((cell["variant"], cell["network"], cell["preset"], cell["attack_label"]), []).append(
                    cell
                )
            for place, group in groups.items():
                nearest, *rest = sorted(group, key=lambda c: _distance(row, asked, c))
                far = len(_differences(row["paper"], "victim", _victim(nearest)))
                # A victim stands in every regime in which something was run on it: it is the same one.
                farther = () if row["defense"] == "none" else tuple(rest)
                match = _match(row, asked, nearest, dict(zip(OTHER, objects, strict=True)), farther)
                found.append(((len(match.other), far, place), match))
        yield from (match for _, match in sorted(found, key=lambda one: one[0]))


def _distance(row: Found, asked: str, cell: Found) -> tuple[int, int, int, str]:
    """How far a cell's defense is from a published row's, to order by."""
    differ = _differences(row["paper"], row["defense"], label.flat(cell["defense_options"]), asked)
    own = label.options(cell["defense_label"])
    return len(differ), len(own.split(", ")) if own else 0, -cell["n"], cell["defense_label"]


def _victim(cell: Found) -> dict[str, Any]:
    """What determines a victim besides its trigger and data, by option."""
    found = {**label.flat(cell["attack_options"]), **label.flat(cell["victim_options"])}
    return {**found, "width": cell["width"]} if isinstance(cell["width"], int) else found


def _match(row: Found, asked: str, cell: Found, objects: Mapping[str, Found], farther: tuple[Found, ...]) -> Match:
    victim = _victim(cell)
    defense = label.flat(cell["defense_options"])
    other = {}
    for kind, found in objects.items():
        options = {"attack": victim, "defense": defense}.get(kind, victim)
        if found["same"] == "no" or (isinstance(found["when"], str) and not holds(found["when"], options)):
            other[kind] = found["why"]
    caveats = tuple(f["why"] for kind, f in objects.items() if f["same"] == "likely" and kind not in other)
    made = _differences(row["paper"], "victim", victim)
    made += [f"pixels {cell['variant']}"] * (cell["variant"] != cell["dataset"]) + [f"preset {cell['preset']}"]
    settings = [f"victim: {', '.join(made)}"]
    if row["defense"] != "none":
        done = _differences(row["paper"], row["defense"], defense, asked)
        settings += [f"{row['defense']}: {', '.join(done)}"] * bool(done)
    labels = [str(cell[c]) for c in ("attack_label", "defense_label") if "[" in str(cell[c])]
    return Match(cell, other, caveats, (*settings, *labels), farther)


def _differences(paper: str, method: str, options: Found, asked: str = "") -> list[str]:
    """Where options are not a paper's, in words; what the row itself varies (``asked``) is none of them."""
    found = []
    varied = {condition.partition("=")[0].strip() for condition in asked.split(";")}
    for line in _records("settings"):
        if (line["paper"], line["method"]) != (paper, method) or line["option"] in varied:
            continue
        option, printed = line["option"], line["published"]
        value = options.get(option, options.get(f"{option}._target_", options))
        if value is not options and not _equal(printed, value):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            shown = f"{value:g}" if number else str(value).rpartition(".")[2]
            found.append(f"{option.removeprefix('recipe.')} {shown} (published {printed})")
    return found


def holds(conditions: str, options: Found) -> bool:
    """Whether options fulfil ``a=1|none; b=*``: one of the values each, ``none`` for null or absent, ``*`` for any."""
    for condition in conditions.split(";"):
        path, _, wanted = condition.strip().partition("=")
        value = options.get(path)
        if not any((v == "*" and value is not None) or _equal(v, value) for v in wanted.split("|")):
            return False
    return True


def _equal(text: str, value: Any) -> bool:
    if value is None:
        return text == "none"
    try:
        return math.isclose(float(text), float(value), rel_tol=1e-6)
    except (TypeError, ValueError):
        return text in (str(value), str(value).rpartition(".")[2])


def _objects(row: Found, kind: str) -> list[Found]:
    """What a paper's name stands for among ours; several if we have several of that name."""
    if row[kind] == "none":
        return [{"ours": "none", "same": "yes", "when": None, "why": None}]
    place = (row["paper"], kind, row[kind])
    return [o for o in _records("objects") if (o["paper"], o["kind"], o["name"]) == place and o["ours"] is not None]


def _setting(row: Found) -> str | None:
    """The condition that a row's ``setting`` puts on our defense: none is the empty text, None: we have none such."""
    if not isinstance(row["setting"], str):
        return ""
    place = (row["paper"], "setting", row["setting"])
    found = [o["when"] for o in _records("objects") if (o["paper"], o["kind"], o["name"]) == place]
    return str(found[0]) if found else None


def _same_ratio(published: float, ours: float) -> bool:
    if math.isnan(ours):
        return published == 0
    return math.isclose(published, ours, rel_tol=1e-6)


def _same_clean(published: Any, cell: Found) -> bool:
    kind, _, amount = str(published).partition(":")
    value = {"spc": cell["spc"], "ratio": cell["clean_ratio"]}.get(kind)
    return value is not None and value == value and math.isclose(float(amount), float(value), rel_tol=1e-6)
