"""The command: ``python -m backdoor_bench.catalog defenses --format json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from backdoor_bench import output, pipe, progress
from backdoor_bench.catalog.entry import GROUPS, Entry, entries
from backdoor_bench.catalog.page import markdown, terminal
from backdoor_bench.errors import BenchError, ConfigError

FORMATS = ("terminal", "markdown", "json")


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 with one message."""
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.catalog",
        description="Attacks, defenses, stages, data sets and networks: what they are, their options, their sources.",
    )
    parser.add_argument("what", nargs="*", metavar="KIND", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of --out, else terminal")
    parser.add_argument("--out", type=Path, help="file to write instead of the terminal: NAME.md or NAME.json")
    options = parser.parse_args(arguments)
    try:
        for what in options.what:
            if what not in GROUPS:
                raise ConfigError(f"'{what}' is no kind; expected {', '.join(GROUPS)}")
        found = {what: entries(what) for what in options.what or GROUPS}
        by_name = {".md": "markdown", ".json": "json"}.get(options.out.suffix) if options.out else "terminal"
        _write(found, options.format or by_name or "markdown", options.out)
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1
    return 0


def _write(found: Mapping[str, Sequence[Entry]], kind: str, out: Path | None) -> None:
    if kind == "terminal" and out is None:
        terminal(found, Console(highlight=False))
        return
    if kind == "terminal":
        raise ConfigError("--format terminal is for the terminal; with --out choose markdown or json")
    if kind == "json":
        text = json.dumps({what: [asdict(entry) for entry in kinds] for what, kinds in found.items()}, indent=1) + "\n"
    else:
        text = markdown(found)
    if out is None:
        sys.stdout.write(text)
        return
    output.write(text, out)
    progress.say(f"written to {out}")


if __name__ == "__main__":
    sys.exit(main())
