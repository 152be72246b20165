"""Tables for LaTeX, with booktabs: paste into a paper, or compile the whole file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from backdoor_bench.report.layout import Cell, Column, Table
from backdoor_bench.report.render_text import plain

WIDEST, LONGEST = 4, 40
"""Attacks side by side and rows on a page; further ones come in another table."""

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "†": r"$\dagger$", "*": r"$^{*}$",
    "Δ": r"$\Delta$", "…": r"\ldots{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''",
    "[": "{[}", "]": "{]}",
}  # fmt: skip


def latex(tables: Sequence[Table], notes: Sequence[str], title: str = "Results") -> str:
    """A document of ``table`` environments with captions and labels."""
    parts = [
        "% \\usepackage{booktabs} is all that the tables need.",
        "\\documentclass{article}",
        "\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n\\usepackage[margin=15mm,landscape]{geometry}",
        "\\begin{document}",
        *(f"% {plain(line)}".replace("\n", " ") for line in [title, *notes]),
    ]
    for table in tables:
        blocks = (part for block in table.blocks(WIDEST) for part in block.pages(LONGEST))
        for number, block in enumerate(blocks):
            parts.append(_table(block, f"tab:{table.name}" + (f"_{number + 1}" if number else "")))
    return "\n".join([*parts, "\\end{document}", ""])


def _table(table: Table, name: str) -> str:
    heads: list[str] = []
    if any(column.group for column in table.columns):
        heads = [_groups(table.columns)]
    heads.append(" & ".join(escape(column.name) for column in table.columns) + r" \\")
    body = []
    for position, row in enumerate(table.rows):
        if position and row.section != table.rows[position - 1].section:
            body.append(r"\midrule")
        body.append(" & ".join(_cell(cell, column) for cell, column in zip(row.cells, table.columns, strict=True))
                    + r" \\")  # fmt: skip
    caption = ". ".join([escape(table.title), *(escape(note).rstrip(".") for note in table.notes)])
    kinds = "".join("r" if column.numeric else "l" for column in table.columns)
    return "\n".join(
        ["", r"\begin{table}[p]\centering\footnotesize", rf"\caption{{{caption}.}}\label{{{name}}}",
         rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", *heads, r"\midrule", *body, r"\bottomrule",
         r"\end{tabular}", r"\end{table}"]
    )  # fmt: skip


def _groups(columns: Sequence[Column]) -> str:
    cells, rules, place = [], [], 1
    for group, members in groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}" if group else " & " * (width - 1))
        if group:
            rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        place += width
    return " & ".join(cells) + r" \\ " + "".join(rules)


def _cell(cell: Cell, column: Column) -> str:
    lines = [escape(line) for line in cell]
    if len(lines) < 2:
        return "".join(lines)
    small = [lines[0], *(rf"{{\scriptsize {line}}}" for line in lines[1:])]
    return rf"\shortstack[{'r' if column.numeric else 'l'}]{{" + r" \\ ".join(small) + "}"


def escape(text: str) -> str:
    """Text in which LaTeX finds no command."""
    return "".join(_ESCAPES.get(character, character) for character in plain(text).replace("\n", " "))
