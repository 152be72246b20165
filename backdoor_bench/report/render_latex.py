"""Tables for LaTeX, with booktabs: paste into a paper, or compile the whole file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest

from backdoor_bench.report.layout import Column, Row, Table
from backdoor_bench.report.render_text import plain

WIDEST, LONGEST = 4, 40
"""Attacks side by side and lines on a page; further ones come in another table."""
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Before a table: one that is wider than the page becomes smaller."""

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "†": r"$\dagger$", "*": r"$^{*}$",
    "Δ": r"$\Delta$", "…": r"\ldots{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''",
    "[": "{[}", "]": "{]}", "\u2212": "$-$",
}  # fmt: skip


def latex(tables: Sequence[Table], notes: Sequence[str], title: str = "Results") -> str:
    """A document of ``table`` environments with captions and labels."""
    parts = [
        "% \\usepackage{booktabs,graphicx} is all that the tables need.",
        "\\documentclass{article}",
        "\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,graphicx}\n\\usepackage[a4paper,margin=15mm,landscape]{geometry}",
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
        body += [f"{line} \\\\" for line in _lines(row)]
        if row.height > 1 and row is not table.rows[-1]:
            body.append(r"\addlinespace")
    kinds = "".join("r" if column.numeric else "l" for column in table.columns)
    notes = [rf"\par\smallskip\begin{{minipage}}{{\linewidth}}\scriptsize\raggedright {text}\end{{minipage}}"
             for text in [r"\\ ".join(escape(note) for note in table.notes)] if text]  # fmt: skip
    return "\n".join(
        ["", r"\begin{table}[p]\centering\footnotesize", rf"\caption{{{escape(table.title)}.}}\label{{{name}}}",
         FITTED, rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", *heads, r"\midrule", *body, r"\bottomrule",
         r"\end{tabular}}", *notes, r"\end{table}"]
    )  # fmt: skip


def _lines(row: Row) -> Iterator[str]:
    """A row's lines; all but the first are small."""
    for number, line in enumerate(zip_longest(*row.cells, fillvalue="")):
        texts = [escape(text) for text in line]
        yield " & ".join(texts if number == 0 else [rf"{{\scriptsize {text}}}" if text else "" for text in texts])


def _groups(columns: Sequence[Column]) -> str:
    cells, rules, place = [], [], 1
    for group, members in groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}" if group else " & " * (width - 1))
        if group:
            rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        place += width
    return " & ".join(cells) + r" \\ " + "".join(rules)


def escape(text: str) -> str:
    """Text in which LaTeX finds no command."""
    signed = re.sub(r"(?<![\w.-])-(?=\d)", "\u2212", plain(text).replace("\n", " "))  # a minus, not a hyphen
    return "".join(_ESCAPES.get(character, character) for character in signed)
