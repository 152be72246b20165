"""``python -m backdoor_bench.sweep status [STORE]``: how the sweeps over a store stand, from any machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from backdoor_bench import pipe, progress
from backdoor_bench.errors import BenchError
from backdoor_bench.sweep import view


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m backdoor_bench.sweep", description="Sweeps over a store.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("status", help="how the sweeps over a store stand")
    command.add_argument("store", nargs="?", type=Path, default=os.environ.get("BACKDOOR_BENCH_STORE", "./store"))
    command.add_argument("--all", action="store_true", help="those that ended long ago, too")
    options = parser.parse_args(arguments)
    try:
        view.show(Path(options.store).resolve(), options.all)
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
