"""``python -m backdoor_bench.report wandb``: a dashboard from code; with ``--upload`` records become W&B runs."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_bench import output, progress
from backdoor_bench.errors import BenchError, ConfigError, StoreError
from backdoor_bench.report import reading
from backdoor_bench.tracking import wandb_content
from backdoor_bench.tracking.wandb_runs import PER, WandbRuns, require_account

if TYPE_CHECKING:
    from pandas import DataFrame

OFFLINE = "BACKDOOR_BENCH_WANDB_OFFLINE"
EXAMPLES = f"""examples:
  python -m backdoor_bench.report wandb                        the dashboard as a JSON file; needs no account
  python -m backdoor_bench.report wandb --online               saved in your W&B project
  python -m backdoor_bench.report wandb --upload               the store's records as offline W&B runs, for wandb sync
  python -m backdoor_bench.report wandb --upload --online attack=badnet --per run
{OFFLINE}=false makes --online the default.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 with one message."""
    options = _parser().parse_args(arguments)
    options.online = options.online or os.environ.get(OFFLINE, "true").lower() in ("false", "0", "no")
    try:
        if options.online:
            require_account()
        if options.upload:
            _upload(options)
        else:
            _dashboard(options)
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1
    except ImportError as error:
        extra = "dashboard" if (error.name or "").startswith("wandb_workspaces") else "report"
        progress.say(f"error: this needs {error.name}; install it with: pip install 'backdoor_bench[{extra}]'")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.report wandb", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", nargs="*", metavar="SOURCE | COLUMN=VALUE",
                        help="--upload: stores or folders of records (default: the store); filters")  # fmt: skip
    parser.add_argument("--upload", action="store_true", help="send records; what was sent already is not sent again")
    parser.add_argument("--online", action="store_true", help="to W&B itself; needs an account (wandb login)")
    parser.add_argument("--per", choices=PER, default="victim", help="one W&B run per victim or per run (%(default)s)")
    parser.add_argument("--project", default="backdoor_bench", help="of W&B (default: %(default)s)")
    parser.add_argument("--entity", help="user or team; default: the account's own")
    parser.add_argument("--group", help="of the W&B runs; default: the attack")
    parser.add_argument("--dir", type=Path, help="of offline runs and the ledger; default: logs/ in the store")
    parser.add_argument("--out", type=Path, default=Path("wandb_dashboard.json"), help="(default: %(default)s)")
    return parser


def _dashboard(options: argparse.Namespace) -> None:
    from backdoor_bench.report import wandb_dashboard

    if options.online:
        progress.say(f"saved: {wandb_dashboard.save(options.project, options.entity)}")
        return
    text = json.dumps(wandb_dashboard.spec(options.project, options.entity), indent=1)
    output.write(text + "\n", options.out)
    progress.say(f"written to {options.out}; with an account, --online saves it in the project {options.project}")


def _upload(options: argparse.Namespace) -> None:
    from backdoor_bench.report import frame

    filters = [text for text in options.what if "=" in text and not Path(text).exists()]
    sources = [text for text in options.what if text not in filters]
    store = Path(os.environ.get("BACKDOOR_BENCH_STORE", "./store"))
    folder = options.dir or (Path(sources[0]) if sources and Path(sources[0]).is_dir() else store) / "logs"
    runs = WandbRuns(folder, options.project, options.entity, not options.online, options.per, options.group)
    found = frame.load(sources, filters)
    for line in found.notes():
        progress.say(line)
    written = same = 0
    total = found.runs.victim.nunique() if options.per == "victim" else len(found.runs)
    with progress.track(f"W&B, {runs.destination}", total, options.per) as advance:
        for content in contents(found.runs, options.per):
            done = runs.send(content)
            written, same = written + done, same + (not done)
            advance("")
    progress.say(f"{written:,} W&B runs written to {runs.destination}, {same:,} were there already")
    if runs.offline and written:
        progress.say(f"send them with: wandb sync {runs.folder}/offline-run-*")


def contents(runs: DataFrame, per: str) -> Iterator[wandb_content.Content]:
    """W&B runs from the records of a frame, one victim's records in memory at a time.

    Raises:
        ConfigError: a record's own file is not there (a Parquet file holds rows, not whole records).
    """
    for _, rows in runs.sort_values(["victim", "key"]).groupby("victim", sort=False):
        records = [_record(row) for row in zip(rows.source, rows.record, strict=True)]
        if per == "victim":
            yield wandb_content.of_victim(records)
        else:
            yield from (wandb_content.of_run(record) for record in records)


def _record(place: tuple[str, str]) -> Mapping[str, Any]:
    source, name = Path(place[0]), place[1]
    tried = [source] if source.is_file() else [source / "runs" / name, source / name]
    for path in tried:
        if path.is_file() and path.suffix == ".json":
            try:
                return reading.read(path)
            except reading.UnreadableError as error:
                raise StoreError(f"{path}: {error}") from error
    raise ConfigError(f"the record {name} of {source} is not there as a file; name the store or folder that it is in")
