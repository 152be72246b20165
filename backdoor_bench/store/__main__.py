"""``python -m backdoor_bench.store compact | verify | gc``: looking after a store of results."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from backdoor_bench import pipe, progress
from backdoor_bench.errors import BenchError, ConfigError, StoreError
from backdoor_bench.store import upkeep
from backdoor_bench.store.base import Store
from backdoor_bench.words import counted

SHOWN = 20


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 if something is damaged or went wrong."""
    parser = argparse.ArgumentParser(prog="python -m backdoor_bench.store", description="Look after a store.")
    commands = parser.add_subparsers(dest="command", required=True)
    default = os.environ.get("BACKDOOR_BENCH_STORE", "./store")
    for name, what in (
        ("compact", "all records into one Parquet file beside them, which reports read"),
        ("verify", "hash everything again; find what is damaged or belongs to nothing"),
        ("gc", "show what no record needs; remove it with --yes"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("store", nargs="?", type=Path, default=Path(default))
    command.add_argument("--yes", action="store_true", help="remove what is shown")
    options = parser.parse_args(arguments)
    try:
        if not options.store.is_dir():
            raise StoreError(f"no store at {options.store}; give its folder, or make one: python -m backdoor_bench")
        store = Store(options.store)
        if options.command == "compact":
            return _compact(store)
        return _verify(store) if options.command == "verify" else _gc(store, options.yes)
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1


def _compact(store: Store) -> int:
    try:
        from backdoor_bench.report import frame  # pandas, an extra

        path = frame.compact(store.root)
    except ModuleNotFoundError as error:
        raise ConfigError(f"Parquet needs {error.name}: pip install 'backdoor_bench[report]'") from None
    progress.say(f"{path}: {decimal(path.stat().st_size)}")
    return 0


def _verify(store: Store) -> int:
    counts: Counter[str] = Counter()
    for finding in upkeep.verify(store):
        counts[finding.kind] += 1
        if finding.kind in ("damaged", "unknown") or counts[finding.kind] <= SHOWN:
            print(f"{finding.kind}: {finding.path.relative_to(store.root)}: {finding.what}")
    for kind, count in counts.items():
        if kind in ("lacking", "useless") and count > SHOWN:
            print(f"{kind}: {count - SHOWN:,} more")
    advice = {
        "damaged": "is set aside when next asked for, and made again", "lacking": "still counts as a result",
        "useless": "can go: python -m backdoor_bench.store gc", "unknown": "needs a newer backdoor_bench",
    }  # fmt: skip
    for kind, count in counts.items():
        progress.say(f"{count:,} {kind}: what is {kind} {advice[kind]}")
    if not counts:
        progress.say("everything is as it was written")
    return int(bool(counts["damaged"] or counts["unknown"]))


def _gc(store: Store, yes: bool) -> int:
    findings = upkeep.garbage(store)
    sizes = {finding.path: finding.bytes for finding in findings}  # a thing that is gone has none
    for finding in findings[:SHOWN]:
        print(f"{finding.path.relative_to(store.root)}: {finding.what} ({decimal(sizes[finding.path])})")
    if len(findings) > SHOWN:
        print(f"and {len(findings) - SHOWN:,} more")
    if not findings:
        progress.say("nothing to remove")
    elif not yes:
        progress.say(f"{counted(len(findings), 'thing')}, {decimal(sum(sizes.values()))}; remove with --yes")
    else:
        removed = upkeep.remove(store, findings)
        size = decimal(sum(sizes[finding.path] for finding in removed))
        stay = "" if len(removed) == len(findings) else "; a process is at work on the rest"
        progress.say(f"{len(removed):,} of {counted(len(findings), 'thing')} removed, {size}{stay}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
