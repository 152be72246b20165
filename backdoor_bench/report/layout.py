"""Tables as the renderers take them: a title, notes, columns in groups, rows in sections, cells of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from backdoor_bench import words
from backdoor_bench.report import label
from backdoor_bench.report.summary import FEW, SETTING

if TYPE_CHECKING:
    from pandas import DataFrame

Cell = tuple[str, ...]
"""Lines of one cell; the first is the main one."""
WEAK, AT_CHANCE, PRIVILEGED = "†", "‡", "*"
MARKS = {
    "weak": f"{WEAK} weak attack: the victim's ASR is too low to tell defenses apart",
    "at_chance": f"{AT_CHANCE} at chance: the ACC of the network or its victim is hardly above that of a constant "
    "answer, so its ASR says nothing",
}
"""By column of a cell, what its mark means."""
NAMES = {"acc": "ACC", "asr": "ASR", "ra": "RA", "der": "DER", "arr": "ARR", "rdr": "RDR"}


@dataclass(frozen=True)
class Column:
    """A column; neighbours with the same ``group`` share a heading. Numbers are set to the right."""

    name: str
    group: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Row:
    """One row; ``section`` changes where a rule is drawn."""

    cells: Sequence[Cell]
    section: str = ""

    @property
    def height(self) -> int:
        """In lines."""
        return max((len(cell) for cell in self.cells), default=1)


@dataclass(frozen=True)
class Table:
    """What a renderer prints. ``name`` is a short word without spaces, for files and references; ``whole``: groups of
    columns are compared with each other, so they stay side by side where there is any room.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    whole: bool = False

    def pages(self, most: int) -> Iterator[Table]:
        """The table in parts of at most ``most`` lines."""
        parts: list[list[Row]] = [[]]
        lines = 0
        for row in self.rows:
            if parts[-1] and lines + row.height > most:
                parts.append([])
                lines = 0
            parts[-1].append(row)
            lines += row.height
        for part in parts:
            title = self.title if part is parts[0] else f"{self.title.removesuffix(' (continued)')} (continued)"
            yield replace(self, title=title, rows=part, notes=self.notes if part is parts[-1] else ())

    def blocks(self, most: int) -> Iterator[Table]:
        """The table in parts of at most ``most`` column groups, each with the columns that belong to none."""
        groups = list(dict.fromkeys(column.group for column in self.columns if column.group))
        for start in range(0, max(len(groups), 1), most):
            here = {"", *groups[start : start + most]}
            kept = [n for n, column in enumerate(self.columns) if column.group in here]
            last = start + most >= len(groups)
            yield replace(
                self,
                title=self.title if start == 0 else f"{self.title} (continued)",
                columns=[self.columns[n] for n in kept],
                rows=[replace(row, cells=[row.cells[n] for n in kept]) for row in self.rows],
                notes=self.notes if last else (),
            )


def value(found: Mapping[str, Any], metric: str) -> Cell:
    """A mean in percent; below it, for more than one run, its deviation and interval. A dash: not measured."""
    mean = found[f"{metric}_mean"]
    if math.isnan(mean):
        return ("-",)
    if math.isnan(found[f"{metric}_std"]):
        return (number(mean),)
    low, high = number(found[f"{metric}_low"]), number(found[f"{metric}_high"])
    return (number(mean), f"± {number(found[f'{metric}_std'])}", f"[{low}, {high}]")


def number(fraction: float, sign: bool = False) -> str:
    """A fraction as a percentage with two digits; a dash for none. ``-0.00`` is ``0.00``."""
    if math.isnan(fraction):
        return "-"
    text = f"{100 * fraction:{'+' if sign else ''}.2f}"
    return text.replace("-", "", 1) if float(text) == 0 and text.startswith("-") else text


def counted(found: Mapping[str, Any]) -> Cell:
    """How many runs a cell rests on, with its marked and failed ones: ``3†``, ``3 (1‡)``."""
    if not found["n"]:
        return (f"{found['failed']} failed",)
    marked = "".join(
        text[0] if found[column] == found["n"] else f" ({found[column]}{text[0]})"
        for column, text in MARKS.items()
        if found[column]
    )
    failed = (f"{found['failed']} failed",) if found["failed"] else ()
    return (f"{found['n']}{marked}", *failed)


def defense_name(found: Mapping[str, Any]) -> Cell:
    """A defense's label; one that assumes more than clean data says what."""
    if found["defense_label"] == label.NO_DEFENSE:
        return ("none (victim)",)
    name, *options = lines_of(found["defense_label"])
    assumed = str(found["assumes"] or "").replace("+", " and ")
    return (f"{name}{PRIVILEGED}", f"(knows the {assumed})", *options) if assumed else (name, *options)


def lines_of(text: str) -> Cell:
    """A label in lines, one for each option that differs."""
    options = label.options(text)
    return (label.method(text), *f"[{options}]".replace(", ", ",\n").split("\n")) if options else (text,)


def order(found: Mapping[str, Any]) -> tuple[int, str]:
    """The victim, then blind defenses by name, then those that assume more."""
    victim = found["defense_label"] == label.NO_DEFENSE
    return (0 if victim else 2 if found["assumes"] else 1, str(found["defense_label"]))


def pivots(cells: DataFrame, metrics: Sequence[str] = ("acc", "asr", "ra")) -> Iterator[Table]:
    """One table per setting: defenses down, attacks across, the metrics and n of each."""
    for position, (_, part) in enumerate(cells.groupby(list(SETTING), dropna=False, sort=True)):
        yield _pivot(part, metrics, f"measured_{position + 1}")


def _pivot(part: DataFrame, metrics: Sequence[str], name: str) -> Table:
    setting = part.iloc[0]
    clean = setting.attack_label.startswith(label.NO_ATTACK)
    shown = [m for m in metrics if not clean or m in ("acc", "arr")] or ["acc"]
    attacks = sorted(part.attack_label.unique())
    heads = [Column(NAMES[m], attack) for attack in attacks for m in shown]
    columns = [Column("defense", numeric=False)]
    for attack in attacks:
        columns += [*(head for head in heads if head.group == attack), Column("n", attack)]
    rows = []
    found = {(c["defense_label"], c["attack_label"]): c for c in part.to_dict("records")}
    for first in sorted({c["defense_label"]: c for c in found.values()}.values(), key=order):
        line: list[Cell] = [defense_name(first)]
        for attack in attacks:
            cell = found.get((first["defense_label"], attack))
            line += [("",)] * (len(shown) + 1) if cell is None else [*(value(cell, m) for m in shown), counted(cell)]
        rows.append(Row(line, section=str(order(first)[0])))
    return Table(name, heading(setting), columns, rows, _notes(part, clean))


def heading(setting: Any) -> str:
    """A setting in words, from the columns of :data:`summary.SETTING`."""
    ratio, regime = setting["poisoning_ratio"], setting["regime"]
    poisoned = "no attack" if math.isnan(ratio) else f"{100 * ratio:g} % poisoned"
    data = (
        "victims without a defense"
        if not isinstance(regime, str)
        else regime.replace("clean ", "clean data ").replace("%", " %")
    )
    return f"{setting['variant']}, {setting['network']}, {poisoned}, {data}, preset {setting['preset']}"


def _notes(part: DataFrame, clean: bool) -> list[str]:
    single = int((part.n == 1).sum())
    spread = "± standard deviation over runs, [95 % bootstrap interval of the mean]"
    if single == int((part.n > 0).sum()):
        spread = "every cell is one run (n = 1), so no spread is known"
    elif single:
        rest, show = ("rests", "shows") if single == 1 else ("rest", "show")
        spread += f"; {words.counted(single, 'cell')} {rest} on one run (n = 1) and {show} none"
    if ((part.n > 1) & (part.n < FEW)).any():
        spread += f"; of fewer than {FEW} runs the interval is too narrow"
    notes = [f"Percent. n: runs; {spread}."]
    notes += [f"{text} ({int(part[column].sum())} of {int(part.n.sum())} runs)."
              for column, text in MARKS.items() if part[column].any()]  # fmt: skip
    if part.failed.any():
        failed = int(part.failed.sum())
        notes.append(f"{words.counted(failed, 'run')} failed; {'it is' if failed == 1 else 'they are'} in no mean.")
    if part.assumes.fillna("").any():
        notes.append(f"{PRIVILEGED} sees more than clean data; an upper bound, not to be ranked with the others.")
    if clean:
        notes.append("A network without a backdoor: what the defense costs.")
    return notes
