"""Tables for the terminal and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from backdoor_bench.report.layout import Cell, Column, Row, Table, lines_of

WIDEST = 150
"""Characters of a Markdown table's rows: about a screen and a half of GitHub's."""


def terminal(tables: Sequence[Table], notes: Sequence[str], console: Console) -> None:
    """Print tables; one that is wider than the console is printed in parts."""
    for line in notes:
        console.print(Text(plain(line)), soft_wrap=True)
    for table in tables:
        groups = len({column.group for column in table.columns if column.group})
        for most in range(max(groups, 1), 0, -1):
            parts = list(table.blocks(most))
            if all(_width(part) <= console.width for part in parts):
                break
        console.print()
        console.print(Text(plain(table.title), style="bold"), soft_wrap=True)
        for part in parts:
            console.print(_rich(part, console.width))
        for line in table.notes:
            console.print(Text(plain(line), style="dim"), soft_wrap=True)


def _width(table: Table) -> int:
    """How wide a table would be if there were room."""
    return sum(max(map(cell_len, lines)) for lines in _columns(table)) + _borders(table)


def _borders(table: Table) -> int:
    return 3 * len(table.columns) + 1


def _columns(table: Table) -> list[list[str]]:
    """The lines of each column, its heading's first."""
    heads = _headings(table)
    return [[*heads[n].split("\n"), *(plain(line) for row in table.rows for line in row.cells[n])]
            for n in range(len(heads))]  # fmt: skip


def _headings(table: Table) -> list[str]:
    """A group's name stands over its first column."""
    found, previous = [], ""
    grouped = any(column.group for column in table.columns)
    for column in table.columns:
        top = column.group if column.group != previous else ""
        found.append(plain(f"{top}\n{column.name}" if grouped else column.name))
        previous = column.group
    return found


def fitted(columns: Sequence[Sequence[str]], numeric: Sequence[bool], room: int) -> list[int]:
    """How wide each column is printed, in ``room`` characters together; the widest give way first.

    Lines are broken between words as long as that will do, then words; numbers are never cut.

    Args:
        columns: the lines of each.
        numeric: whether a column holds numbers.
    """
    words = [[word for line in lines for word in line.split()] for lines in columns]
    numbers = [
        [word for word in each if holds and re.match(r"\W?\d", word)]
        for each, holds in zip(words, numeric, strict=True)
    ]
    for kept in (words, numbers):
        least = [max(map(cell_len, each), default=1) for each in kept]
        widths = [max(map(cell_len, lines)) for lines in columns]
        while sum(widths) > room and (loose := [n for n, width in enumerate(widths) if width > least[n]]):
            widths[max(loose, key=widths.__getitem__)] -= 1
        if sum(widths) <= room:
            break
    return widths


def _rich(table: Table, width: int) -> RichTable:
    shown = RichTable()
    widths = fitted(_columns(table), [column.numeric for column in table.columns], width - _borders(table))
    for column, heading, wide in zip(table.columns, _headings(table), widths, strict=True):
        justify: JustifyMethod = "right" if column.numeric else "left"
        shown.add_column(Text(heading), justify=justify, overflow="fold", width=wide)
    for position, row in enumerate(table.rows):
        if position and row.section != table.rows[position - 1].section:
            shown.add_section()
        shown.add_row(*(Text(plain("\n".join(cell))) for cell in row.cells))
    return shown


def plain(text: str) -> str:
    """Without control characters: a record is somebody's file, and a terminal obeys them."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)


def markdown(parts: Sequence[tuple[str, Sequence[Table]]], notes: Sequence[str], title: str = "Results") -> str:
    """GitHub's Markdown. A table wider than :data:`WIDEST` comes in parts, cells of several lines have ``<br>``.

    Args:
        parts: headings with their tables; what has no heading needs none.
        notes: what stands at the top.
    """
    parts = [(heading, tables) for heading, tables in parts if tables]
    lines = [f"# {_escape(title)}", "", *(f"- {_escape(line)}" for line in notes)]
    if len(parts) > 1:
        lines += ["- Below: " + ", ".join(f"[{_escape(heading)}](#{_anchor(heading)})" for heading, _ in parts)]
    for heading, tables in parts:
        lines += ["", f"## {_escape(heading)}"] if heading else []
        for table in tables:
            lines += ["", f"##{'#' * bool(heading)} {_escape(table.title)}", *_table(table)]
    return "\n".join(line.rstrip(" ") if not line.endswith("  ") else line for line in lines) + "\n"


def _anchor(heading: str) -> str:
    """What GitHub calls a heading in an address."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _table(table: Table) -> list[str]:
    lines = []
    for part in _parts(table):
        lines += ["", "| " + " | ".join(_heads(part.columns)) + " |"]
        lines.append("|" + "|".join("---:" if column.numeric else "---" for column in part.columns) + "|")
        lines += ["| " + " | ".join(map(_cell, row.cells)) + " |" for row in part.rows]
    return [*lines, *[""] * bool(table.notes), *(f"{_escape(line)}  " for line in table.notes)]


def _parts(table: Table) -> list[Table]:
    """The table's columns in the fewest parts that are no wider than :data:`WIDEST`."""
    groups = len({column.group for column in table.columns if column.group})
    for most in range(max(groups, 1), 0, -1):
        parts = list(table.blocks(most))
        if table.whole or most == 1 or all(_characters(part) <= WIDEST for part in parts):
            break
    rows = [[n for n, row in enumerate(part.rows) if any(map(any, _own(part, row)))] for part in parts]
    return [replace(part, rows=[part.rows[n] for n in kept]) for part, kept in zip(parts, rows, strict=True)]


def _own(table: Table, row: Row) -> list[Cell]:
    """A row's cells that are in a group of columns; all, where there are no groups."""
    grouped = [cell for cell, column in zip(row.cells, table.columns, strict=True) if column.group]
    return grouped or list(row.cells)


def _characters(table: Table) -> int:
    heads = _heads(table.columns)
    lines = [[*heads[n].split("<br>"), *(line for row in table.rows for line in _joined(row.cells[n]))]
             for n in range(len(heads))]  # fmt: skip
    return sum(3 + max(map(len, column)) for column in lines)


def _heads(columns: Sequence[Column]) -> list[str]:
    """A group's name stands over its first column: there are no headings over several."""
    found, previous = [], ""
    for column in columns:
        top = lines_of(column.group) if column.group != previous else ()
        found.append("<br>".join(map(_escape, (*filter(None, top), column.name))))
        previous = column.group
    return found


def _joined(cell: Cell) -> Cell:
    """A mean and its deviation in one line."""
    return (f"{cell[0]} {cell[1]}", *cell[2:]) if len(cell) > 1 and cell[1].startswith("±") else cell


def _cell(cell: Cell) -> str:
    return "<br>".join(map(_escape, _joined(cell)))


def _escape(text: str) -> str:
    """Markdown's own characters, and HTML's: nothing in a record becomes markup."""
    text = plain(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
