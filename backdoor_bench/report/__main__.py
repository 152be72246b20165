"""Tables from records: ``python -m backdoor_bench.report dataset=cifar10 attack=badnet --format markdown``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from backdoor_bench import output, pipe, progress
from backdoor_bench.errors import BenchError, ConfigError, unknown

if TYPE_CHECKING:
    from pandas import DataFrame

    from backdoor_bench.report.frame import Records
    from backdoor_bench.report.layout import Table

    Part = tuple[str, Sequence[Table]]

FORMATS = ("terminal", "markdown", "latex", "csv", "parquet", "html")
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".parquet": "parquet", ".html": "html"}
EXAMPLES = """examples:
  python -m backdoor_bench.report                                 the store, in the terminal
  python -m backdoor_bench.report results/core dataset=cifar10 attack=badnet,blended
  python -m backdoor_bench.report --out page.html                 a page to filter, sort and hover; needs no network
  python -m backdoor_bench.report results/core results/gpu --pages --out docs/results.md
  python -m backdoor_bench.report --table unibp_1                 a published table, ours beside it
  python -m backdoor_bench.report --runs --out runs.csv status=failed
  python -m backdoor_bench.report wandb --help                    a W&B dashboard; records sent to W&B later
"""


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 with one message if there is nothing to report."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["wandb"]:
        from backdoor_bench.report import wandb

        return wandb.main(given[1:])
    try:
        made_by = f"Made by: python -m backdoor_bench.report {shlex.join(given)}".strip()
        _report(_parser().parse_intermixed_args(given), made_by)
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("backdoor_bench"):
            raise
        progress.say(f"error: reports need {error.name}; install it with: pip install 'backdoor_bench[report]'")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.report", description="Tables, data and a page from records.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "what",
        nargs="*",
        metavar="SOURCE | COLUMN=VALUE",
        help="stores, folders or files of records (default: the store); filters, values split by commas",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of --out, else terminal")
    parser.add_argument("--out", type=Path, help="file to write; without it text goes to the terminal")
    parser.add_argument("--metrics", default="acc,asr,ra", help="of acc asr ra der arr rdr (default: %(default)s)")
    parser.add_argument("--table", metavar="NAME", help="a published table, as in unibp_1; 'list' names them all")
    parser.add_argument("--pages", action="store_true", help="Markdown: a page for each source, and one that sums up")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also every figure that the records can show")
    parser.add_argument("--runs", action="store_true", help="csv and parquet: one row per run instead of per cell")
    return parser


def _report(options: argparse.Namespace, made: str) -> None:
    from backdoor_bench.report import beside, frame, published, summary

    kind = options.format or (SUFFIXES.get(options.out.suffix, "terminal") if options.out else "terminal")
    metrics = options.metrics.split(",")
    for metric in metrics:
        if metric not in summary.METRICS:
            raise unknown("metric", metric, summary.METRICS)
    if options.table == "list":
        print("\n".join(published.names()))
        return
    filters = [text for text in options.what if "=" in text and not Path(text).exists()]
    try:
        records = frame.load([text for text in options.what if text not in filters], filters)
    except ConfigError:
        if options.table is None or options.what:
            raise
        records = None  # a published table can be read without a run of ours
    if options.figures is not None and records is not None:
        from backdoor_bench.report.figure.__main__ import everything

        everything(records, options.figures)
    notes = records.notes() if records else []
    if kind != "terminal":
        notes.append(made)
    cells = summary.cells(records.runs) if records else None
    if options.table is not None:
        _write(kind, options.out, [("", [beside.table(options.table, cells)])], notes)
        return
    assert records is not None
    assert cells is not None
    if kind in ("csv", "parquet"):
        _data(kind, options.out, records.runs if options.runs else cells)
        return
    parts = _parts(records, cells, metrics)
    if kind == "html":
        from backdoor_bench.report import render_html

        _save(options.out or Path("report.html"), render_html.page(parts, notes, cells, records.runs))
    elif options.pages:
        _pages(options, filters, metrics, parts[0], notes)
    else:
        _write(kind, options.out, parts, notes)


def _parts(records: Records, cells: DataFrame, metrics: Sequence[str]) -> list[Part]:
    from backdoor_bench.report import beside, layout, ranking

    medians, duels = ranking.tables(records.runs)
    return [
        ("Summary", medians),
        ("Measured", list(layout.pivots(cells, metrics))),
        ("Beside published figures", list(beside.tables(cells))),
        ("Which defense beats fine-pruning and fine-tuning?", duels),
    ]


def _pages(
    options: argparse.Namespace, filters: Sequence[str], metrics: Sequence[str], top: Part, notes: Sequence[str]
) -> None:
    """A Markdown page of each source in a folder beside ``--out``, and in ``--out`` the summary of all with links."""
    from backdoor_bench.report import frame, render_text, summary

    sources = [Path(text) for text in options.what if text not in filters]
    names = [source.resolve().stem for source in sources]
    if options.out is None or options.out.suffix != ".md" or len(sources) < 2 or len(set(names)) < len(names):
        raise ConfigError("--pages makes a page of each of several sources with different names: SOURCE SOURCE "
                          "--pages --out NAME.md")  # fmt: skip
    links = []
    for source, name in zip(sources, names, strict=True):
        records = frame.load([source], filters)
        page = options.out.with_suffix("") / f"{name}.md"
        parts = _parts(records, summary.cells(records.runs), metrics)
        _save(page, render_text.markdown(parts, [*records.notes(), notes[-1]], f"Results: {name}"))
        about = source / "README.md"
        how = f"; [how it was made]({os.path.relpath(about, options.out.parent)})" if about.is_file() else ""
        links.append(f"- [{name}]({options.out.stem}/{name}.md): {', '.join(records.notes()[:1])}{how}")
    text = render_text.markdown([top], notes)
    head, line, rest = text.partition("\n\n## ")
    _save(
        options.out,
        "\n".join([head, "", "One page for each set of records, with all tables:", "", *links]) + line + rest,
    )


def _write(kind: str, out: Path | None, parts: Sequence[Part], notes: Sequence[str]) -> None:
    from backdoor_bench.report import render_latex, render_text

    tables = [table for _, part in parts for table in part]
    if kind == "markdown":
        text = render_text.markdown(parts, notes)
    elif kind == "latex":
        text = render_latex.latex(tables, notes)
    elif kind == "terminal":
        if out is None:
            render_text.terminal(tables, notes, Console(highlight=False))
            return
        with out.open("w") as file:
            render_text.terminal(tables, notes, Console(file=file, width=200, highlight=False))
        return
    else:
        raise ConfigError(f"--table is printed as terminal, markdown or latex, not as {kind}")
    _save(out, text)


def _data(kind: str, out: Path | None, rows: DataFrame) -> None:
    from backdoor_bench.report import render_data

    if kind == "csv":
        _save(out, render_data.csv(rows))
    elif out is None:
        raise ConfigError("--format parquet needs a file: --out NAME.parquet")
    else:
        render_data.parquet(rows, out)


def _save(out: Path | None, text: str) -> None:
    if out is None:
        sys.stdout.write(text)
        return
    output.write(text, out)
    progress.say(f"written to {out}")


if __name__ == "__main__":
    sys.exit(main())
