"""Terminal, Markdown, LaTeX and CSV: every n and interval is there, and no string of a record becomes markup."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from backdoor_bench.report import frame, layout, render_data, render_latex, render_text, summary
from backdoor_bench.report.layout import Column, Row, Table
from tests.report.conftest import Write

NASTY = r"a|b <img src=x> \input{x} $1$ 50% _c_ [/bold] `d` #e"


def pivots(folder: Path, *metrics: str) -> list[Table]:
    return list(layout.pivots(summary.cells(frame.load([folder]).runs), metrics or ("acc", "asr", "ra")))


def terminal(tables: list[Table], width: int = 160) -> str:
    written = io.StringIO()
    render_text.terminal(tables, ["a note"], Console(file=written, width=width, highlight=False))
    return written.getvalue()


def three(write: Write) -> None:
    for repetition, asr in enumerate((0.1, 0.2, 0.3)):
        write(key=f"a{repetition}", repetition=repetition, asr=asr, acc=0.8 + asr / 10)
    write(key="b", defense="oracle", assumes=["trigger"])
    write(key="c", defense="clp", weak_attack=True)
    write(key="d", defense="clp", status="failed", reason="no disk", repetition=1)


def test_a_cell_says_n_and_spread(write: Write, folder: Path) -> None:
    three(write)
    (table,) = pivots(folder)
    assert table.title == "cifar10, preact_resnet18 width 64, 10 % poisoned, clean data 5 %, preset made_up"
    lines = {row.cells[0][0]: row.cells[1:] for row in table.rows}
    assert list(lines) == ["none (victim)", "clp", "ft", "oracle*"]  # the privileged one is last
    assert table.rows[-1].cells[0] == ("oracle*", "(knows the trigger)")
    acc, asr, ra, n = lines["ft"]
    assert asr[0] == "20.00"
    assert asr[1] == "± 10.00"
    assert asr[2] == "[10.00, 30.00]"  # of 27 draws of three one is all the smallest: more than 2.5 %
    assert acc[0] == "82.00"
    assert ra[:2] == ("60.00", "± 0.00")
    assert n == ("3",)
    assert lines["clp"][1] == ("30.00",)  # one run: no spread
    assert lines["clp"][3] == ("1†", "1 failed")
    notes = " ".join(table.notes)
    assert "3 cells rest on one run (n = 1)" in notes
    assert "of fewer than 5 runs the interval is too narrow" in notes
    assert "weak attack" in notes
    assert "1 run failed; it is in no mean" in notes
    assert "not to be ranked" in notes


def test_other_metrics_and_a_clean_network(write: Write, folder: Path) -> None:
    write(attack=None, poisoning_ratio=None, asr=None, ra=None, der=None, rdr=None)
    (table,) = pivots(folder, "acc", "asr", "der", "arr")
    assert [column.name for column in table.columns] == ["defense", "ACC", "ARR", "n"]
    assert "no attack" in table.title


@pytest.mark.parametrize(
    ("fraction", "sign", "text"),
    [(0.1234, False, "12.34"), (-0.00001, True, "0.00"), (0.05, True, "+5.00"), (float("nan"), False, "-")],
)
def test_numbers(fraction: float, sign: bool, text: str) -> None:
    assert layout.number(fraction, sign).lstrip("+" if text == "0.00" else "") == text


def wide(groups: int) -> Table:
    columns = [Column("defense", numeric=False), *(Column("ACC", f"attack{n}") for n in range(groups))]
    return Table("wide", "Wide", columns, [Row([("ft",), *((f"{n}.00",) for n in range(groups))])])


def test_a_wide_table_comes_in_parts_that_fit() -> None:
    text = terminal([wide(12)], width=60)
    assert max(map(len, text.splitlines())) <= 60
    for number in range(12):
        assert f"{number}.00" in text
    assert text.count("ft") == 3
    latex = render_latex.latex([wide(12)], [])
    assert latex.count(r"\begin{table}") == 3
    assert "Wide (continued)" in latex


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (40, [16, 15]),  # all of it
        (28, [16, 12]),  # the second gives way, as far as its words go ...
        (20, [10, 10]),  # ... and then both, in the middle of words
        (5, [1, 6]),  # but a number stays whole where nothing fits
    ],
)
def test_the_widest_columns_give_way_and_numbers_are_never_cut(room: int, expected: list[int]) -> None:
    columns = [["attack", "label_consistent"], ["ACC", "100.00", "published 96.26"]]
    assert render_text.fitted(columns, [False, True], room) == expected


@pytest.mark.parametrize("width", [100, 80, 60])
def test_a_table_that_fits_nowhere_keeps_its_numbers_whole(width: int) -> None:
    columns = [Column("clean data", numeric=False), Column("attack", numeric=False), Column("defense", numeric=False),
               Column("ACC", "published"), Column("ASR", "published"), Column("DER", "published"),
               Column("remarks", numeric=False)]  # fmt: skip
    cells = [("10 %",), ("label_consistent",), ("unibp",), ("91.40",), ("100.00",), ("98.75", "recomputed 96.26"),
             ("see [1]",)]  # fmt: skip
    text = terminal([Table("t", "T", columns, [Row(cells)])], width)
    assert max(map(len, text.splitlines())) <= width
    for number in ("91.40", "100.00", "98.75", "96.26"):
        assert number in text
    assert ("label_consistent" in text) == (width > 80)


def test_a_long_table_goes_over_pages() -> None:
    rows = [Row([(f"defense{number}",), ("1.00",)]) for number in range(90)]
    table = Table("long", "Long", [Column("defense", numeric=False), Column("ACC")], rows, ["the end"])
    text = render_latex.latex([table], [])
    assert text.count(r"\begin{table}") == 3
    assert text.count("the end") == 1
    assert text.count("defense") == 90 + 3


def test_markdown(write: Write, folder: Path) -> None:
    three(write)
    text = render_text.markdown([("Measured", pivots(folder))], ["a note"])
    assert text.startswith("# Results\n\n- a note\n")
    assert "| defense | badnet<br>ACC | ASR | RA | n |\n|---|---:|---:|---:|---:|\n" in text
    row = next(line for line in text.splitlines() if line.startswith("| ft "))
    assert "| 20.00 ± 10.00<br>" in row
    assert row.count("|") == 6


def test_a_wide_markdown_table_comes_in_parts_without_empty_rows() -> None:
    table = wide(30)
    other = Row([("fp",), *[("",)] * 29, ("7.00",)])
    text = render_text.markdown([("", [replace(table, rows=[*table.rows, other])])], [])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert max(map(len, rows)) < 2 * render_text.WIDEST
    assert [sum(line.startswith(f"| {name} ") for line in rows) for name in ("ft", "fp")] == [3, 1]
    assert all(f"{number}.00" in text for number in range(30))


def test_an_ablation_has_a_line_for_each_option(write: Write, folder: Path) -> None:
    write(key="a")
    write(key="b", repetition=1)
    write(key="c", config__defense__epochs=5, config__defense__use_validation="train")
    (table,) = pivots(folder)
    assert table.rows[-1].cells[0] == ("ft", "[epochs=5,", "use_validation=train]")


def test_latex(write: Write, folder: Path) -> None:
    three(write)
    text = render_latex.latex(pivots(folder), [])
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\multicolumn{4}{c}{badnet}", r"\cmidrule(lr){2-5}",
                 r"{\scriptsize $\pm$ 10.00}", r"10 \% poisoned", r"1$\dagger$"):  # fmt: skip
        assert part in text
    assert "82.00 & 20.00 & 60.00 & 3" in text  # means in one line, what belongs to them below
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    widths = {line.count("&") for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line}
    assert widths == {4}


def test_nothing_in_a_record_becomes_markup(write: Write, folder: Path) -> None:
    write(defense=NASTY, attack="\x1b[31mred\u202e")
    tables = pivots(folder)
    shown = terminal(tables, width=200)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[/bold]" in shown
    markdown = next(line for line in render_text.markdown([("", tables)], []).splitlines() if "img" in line)
    assert "<img" not in markdown
    assert r"a\|b &lt;img src=x&gt;" in markdown
    latex = render_latex.latex(tables, [])
    assert r"\input" not in latex
    assert r"\textbackslash{}input\{x\} \$1\$ 50\% \_c\_" in latex


def test_latex_has_a_minus_before_numbers_and_hyphens_in_words() -> None:
    assert render_latex.escape("-2.50") == "$-$2.50"
    assert render_latex.escape("[-1.00, -0.50]") == "{[}$-$1.00, $-$0.50{]}"
    assert render_latex.escape("ours - published, low-pass 1e-5, 3-4") == "ours - published, low-pass 1e-5, 3-4"


def test_a_note_cannot_leave_its_latex_comment() -> None:
    assert "\n\\input{x}" not in render_latex.latex([], ["a\n\\input{x}"])


def test_csv_has_fractions_and_no_formulas(write: Write, folder: Path) -> None:
    write(key="a", defense="=cmd|' /C calc'!A0")
    write(key="b")
    rows = list(csv.DictReader(io.StringIO(render_data.csv(summary.cells(frame.load([folder]).runs)))))
    assert {row["defense"] for row in rows} == {"", "'=cmd|' /C calc'!A0", "ft"}
    own = next(row for row in rows if row["defense"] == "ft")
    assert float(own["asr_mean"]) == 0.3
    assert own["asr_low"] == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (texlive-latex-recommended)")
def test_latex_compiles_and_fits_its_pages(write: Write, folder: Path, tmp_path: Path) -> None:
    three(write)
    write(key="nasty", defense=NASTY, attack="a_b%c")
    (tmp_path / "report.tex").write_text(render_latex.latex([*pivots(folder), wide(12)], ["a note"]))
    done = subprocess.run(["pdflatex", "-halt-on-error", "report.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
