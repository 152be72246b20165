"""Tables for the terminal and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from backdoor_bench.report.layout import Cell, Table


def terminal(tables: Sequence[Table], notes: Sequence[str], console: Console) -> None:
    """Print tables; one that is wider than the console is printed in parts."""
    for line in notes:
        console.print(Text(plain(line)), soft_wrap=True)
    for table in tables:
        groups = len({column.group for column in table.columns if column.group})
        for most in range(max(groups, 1), 0, -1):
            parts = [_rich(part) for part in table.blocks(most)]
            fits = all(_width(part, console) <= console.width for part in parts)
            if fits or most == 1:
                break
        console.print()
        console.print(Text(plain(table.title), style="bold"), soft_wrap=True)
        for part in parts:
            console.print(part)
        for line in table.notes:
            console.print(Text(plain(line), style="dim"), soft_wrap=True)


def _width(shown: RichTable, console: Console) -> int:
    """How wide a table would be if there were room."""
    return Measurement.get(console, console.options.update(max_width=10_000), shown).maximum


def _rich(table: Table) -> RichTable:
    shown = RichTable()
    previous = ""
    for column in table.columns:
        # A group's name stands over its first column.
        top = column.group if column.group != previous else ""
        grouped = any(c.group for c in table.columns)
        shown.add_column(Text(plain(f"{top}\n{column.name}" if grouped else column.name)),
                         justify="right" if column.numeric else "left", overflow="fold")  # fmt: skip
        previous = column.group
    for position, row in enumerate(table.rows):
        if position and row.section != table.rows[position - 1].section:
            shown.add_section()
        shown.add_row(*(Text(plain("\n".join(cell))) for cell in row.cells))
    return shown


def plain(text: str) -> str:
    """Without control characters: a record is somebody's file, and a terminal obeys them."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)


def markdown(tables: Sequence[Table], notes: Sequence[str], title: str = "Results") -> str:
    """GitHub's Markdown: wide tables scroll, cells of several lines are broken by ``<br>``."""
    lines = [f"# {_escape(title)}", "", *(f"- {_escape(line)}" for line in notes)]
    for table in tables:
        lines += ["", f"## {_escape(table.title)}", ""]
        heads = [f"{column.group} {column.name}".strip() for column in table.columns]
        lines.append("| " + " | ".join(map(_escape, heads)) + " |")
        lines.append("|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|")
        lines += ["| " + " | ".join(_cell(cell) for cell in row.cells) + " |" for row in table.rows]
        lines += [""] * bool(table.notes) + [f"{_escape(line)}  " for line in table.notes]
    return "\n".join(line.rstrip(" ") if not line.endswith("  ") else line for line in lines) + "\n"


def _cell(cell: Cell) -> str:
    return "<br>".join(_escape(line) for line in cell)


def _escape(text: str) -> str:
    """Markdown's own characters, and HTML's: nothing in a record becomes markup."""
    text = plain(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
