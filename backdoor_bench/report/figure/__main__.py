"""The command: ``python -m backdoor_bench.report.figure medians time dataset=cifar10 --out figures``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from backdoor_bench import pipe, progress
from backdoor_bench.errors import BenchError, ConfigError, unknown
from backdoor_bench.report.figure import style
from backdoor_bench.report.figure.draw import FIGURES, draw
from backdoor_bench.report.frame import Records, load
from backdoor_bench.words import counted


def write(
    records: Records,
    names: Sequence[str],
    out: Path,
    formats: Sequence[str] = style.FORMATS,
    parameter: str | None = None,
    weak: bool = False,
    strict: bool = True,
) -> list[Path]:
    """Draw figures into files ``NAME.FORMAT``.

    Args:
        names: of :data:`FIGURES`.
        strict: whether a figure with nothing to show is an error; else its reason is said, and the others are drawn.

    Raises:
        ConfigError: an unknown name or format; nothing to show.
        StoreError: the folder cannot be written.
    """
    style.check_formats(formats)
    for name in names:
        if name not in FIGURES:
            raise unknown("figure", name, FIGURES)
    made: list[Path] = []
    for name in names:
        try:
            figure = draw(name, records, parameter, weak)
        except ConfigError as error:
            if strict:
                raise
            progress.say(f"{name}: {error}")
            continue
        stem = re.sub(r"[^\w.-]", "_", f"{name}_{parameter}") if name == "sensitivity" else name
        made += style.save(figure, out, stem, formats)
    if not made:
        raise ConfigError("none of the figures has anything to show with these records; the lines above say why")
    return made


def everything(records: Records, out: Path) -> list[Path]:
    """Every figure that the records can show, in all formats; the others are said with the reason."""
    return write(records, [name for name in FIGURES if name != "sensitivity"], out, strict=False)


def sort(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Figures, sources and filters, told apart: a figure's name, else something that exists, else ``COLUMN=VALUE``.

    Raises:
        ConfigError: none of these.
    """
    names, sources, filters = list[str](), list[str](), list[str]()
    for word in words:
        if word in FIGURES:
            names.append(word)
        elif Path(word).exists() or "/" in word:
            sources.append(word)
        elif "=" in word:
            filters.append(word)
        else:
            raise unknown("figure", word, FIGURES)
    return names, sources, filters


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    """Draw. Returns 0, or 1 if something that was asked for could not be drawn."""
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.report.figure", description="Figures of records.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="figures:\n" + "\n".join(f"  {name:<23} {what}" for name, what in FIGURES.items()),
    )  # fmt: skip
    parser.add_argument(
        "words", nargs="*", metavar="NAME | SOURCE | COLUMN=VALUE",
        help="figures (none: all that have something to show); stores, folders or files of records (none: the store); "
        "filters, values split by commas",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--formats", default=",".join(style.FORMATS), help="some of svg,pdf,png")
    parser.add_argument("--parameter", metavar="NAME", help="the option of `sensitivity`, as on the command line")
    parser.add_argument("--weak", action="store_true", help="keep runs of weak attacks and of victims at chance")
    options = parser.parse_intermixed_args(arguments)
    every = [name for name in FIGURES if name != "sensitivity" or options.parameter]
    try:
        names, sources, filters = sort(options.words)
        made = write(
            load(sources, filters), names or every, options.out, options.formats.split(","), options.parameter,
            options.weak, strict=bool(names),
        )  # fmt: skip
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1
    except ModuleNotFoundError as error:
        progress.say(f"error: figures need {error.name}; install it with pip install 'backdoor_bench[report]'")
        return 1
    progress.say(f"{counted(len(made), 'file')}: {', '.join(sorted({path.stem for path in made}))} in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
