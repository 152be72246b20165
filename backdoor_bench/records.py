"""The store's records as one CSV: ``python -m backdoor_bench.records OUT.csv dataset=cifar10 preset=evidence``."""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backdoor_bench import output, pipe, progress
from backdoor_bench.errors import BenchError, ConfigError, unknown
from backdoor_bench.store import Store
from backdoor_bench.words import counted

COLUMNS = (
    "key", "victim", "status", "reason", "variant", "dataset", "architecture", "width", "attack", "poisoning_ratio",
    "effective_poisoning_ratio", "defense", "assumes", "stage", "spc", "clean_ratio", "clean_train", "clean_validation",
    "seed", "repetition", "preset", "weak_attack", "victim_at_chance", "at_chance", "acc", "asr", "ra", "der", "arr",
    "rdr", "seconds", "peak_mib", "victim_epochs", "precision", "device", "threads", "revision", "started",
)  # fmt: skip


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for the victim's state, one per stage, and one (``stage=final``) for the run.

    What an attack measures besides (``noise_acc``) comes after :data:`COLUMNS`, where it was measured.
    """
    config, environment = record["config"], record["environment"]
    shared = {name: record.get(name) for name in COLUMNS} | {
        "peak_mib": _peak(record),
        "width": config["model"].get("width"),
        "assumes": "+".join(record["assumes"]),
        "clean_train": record.get("clean", {}).get("train"),
        "clean_validation": record.get("clean", {}).get("validation"),
        "victim_epochs": config["recipe"]["epochs"],
        "precision": record["numerics"]["precision"],
        "device": record["numerics"]["device"],
        "threads": environment["threads"],
        "revision": environment["revision"],
    }
    empty = dict.fromkeys(("acc", "asr", "ra", "der", "arr", "rdr", "seconds"))
    found = [{**shared, "stage": "final", **record.get("extra", {})}]
    if record["status"] == "ok":
        measured = [{"name": "victim", "seconds": record["victim_seconds"], **record["before"]}, *record["stages"]]
        steps = [{**shared, **empty, **{k: v for k, v in step.items() if k in empty},
                  "stage": step["name"], "peak_mib": _peak(step), **step.get("extra", {})}
                 for step in measured]  # fmt: skip
        found = [*steps, *found]
    return found


def _peak(node: Mapping[str, Any]) -> float | None:
    """MiB: on CUDA of the stage, on a CPU of the whole process so far."""
    return node.get("peak_cuda_mib", node.get("process_peak_mib_so_far"))


def write(store: Store, target: Path, filters: Mapping[str, str]) -> int:
    """Write the records whose fields equal the filters, as text; returns how many runs.

    Raises:
        ConfigError: a filter names no column, or no record fits.
        StoreError: the file cannot be written.
    """
    for name in filters:
        if name not in COLUMNS:
            raise unknown("column", name, COLUMNS)
    chosen = []
    for record in store.records():
        parts = rows(record)
        if all(str(parts[-1][name]) == value for name, value in filters.items()):
            chosen.append(parts)
    if not chosen:
        raise ConfigError(f"no record in {store.root} fits; run one first: python -m backdoor_bench +attack=badnet")
    chosen.sort(key=lambda parts: [str(parts[-1][n]) for n in ("dataset", "attack", "defense", "repetition", "key")])
    found = [row for parts in chosen for row in parts]
    extra = sorted({name for row in found for name in row}.difference(COLUMNS))
    file = io.StringIO()
    writer = csv.DictWriter(file, [*COLUMNS, *extra], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    output.write(file.getvalue(), target)
    return len(chosen)


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.records",
        description="The store's records as one CSV: a row for the victim, for each stage, and for the whole run.",
    )
    parser.add_argument("target", type=Path, metavar="OUT.csv", help="file to write")
    parser.add_argument(
        "filters", nargs="*", metavar="COLUMN=VALUE", help="only these runs: dataset=cifar10 attack=badnet"
    )
    parser.add_argument(
        "--store-dir",
        metavar="DIR",
        default=os.environ.get("BACKDOOR_BENCH_STORE", "./store"),
        help="the store (default: BACKDOOR_BENCH_STORE, else ./store)",
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        pairs = [text.partition("=") for text in options.filters]
        for name, equals, _ in pairs:
            if not equals:
                raise ConfigError(f"{name}: expected COLUMN=VALUE, as in dataset=cifar10")
        count = write(Store(options.store_dir), options.target, {name: value for name, _, value in pairs})
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1
    progress.say(f"{counted(count, 'run')} to {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
