"""Reading and summarising 100,000 records: seconds and memory. ``python -m benchmarks.report --out FILE.json``.

The records are synthetic, say so (preset ``synthetic``), lie in a temporary folder and are removed afterwards. Each
step runs in a process of its own, so that its peak memory is its own (with that of its largest worker for each core).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backdoor_bench.store import files

ATTACKS = ("badnet", "blended", "sig", "wanet", "lf", "ssba", "inputaware", "bpp")
DEFENSES = (
    "ft",
    "fp",
    "nad",
    "anp",
    "clp",
    "bnp",
    "ftsam",
    "sau",
    "ibau",
    "npd",
    "rnp",
    "nc",
    "fst",
    "pbe",
    "tsbd",
    "unit",
)
NETWORKS = ("preact_resnet18", "vgg19_bn", "efficientnet_b3", "mobilenet_v3_large")
REGIMES = (2, 10, 100)
RATIOS = (0.01, 0.05, 0.1)
LIMITS = {"seconds": 30.0, "mib": 2048.0}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
STEPS = ("read", "compact", "read_compacted", "page")


def synthetic(base: dict[str, Any], number: int) -> dict[str, Any]:
    """The number-th record of a grid in the survey's proportions: ten repetitions, then the regimes, and so on."""
    draws = random.Random(number)
    rest, repetition = divmod(number, 10)
    rest, regime = divmod(rest, len(REGIMES))
    rest, defense = divmod(rest, len(DEFENSES))
    victim, ratio = divmod(rest, len(RATIOS))
    seed, place = divmod(victim, len(ATTACKS) * len(NETWORKS))
    acc, asr = 0.85 + 0.05 * draws.random(), draws.random() ** 3
    measured = {"acc": acc, "asr": asr, "ra": (1 - asr) * draws.random()}
    gains = {"der": (0.95 - asr - 0.05 + 1) / 2, "arr": (0.92 - acc) / 0.92, "rdr": (0.92 - measured["ra"]) / 0.92}
    config = base["config"]
    return {
        **base, **measured, **gains,
        "key": f"{number:020x}", "victim": f"synthetic{rest}", "preset": "synthetic", "seed": seed,
        "repetition": repetition, "spc": REGIMES[regime], "clean_ratio": None, "poisoning_ratio": RATIOS[ratio],
        "attack": ATTACKS[place % len(ATTACKS)], "architecture": NETWORKS[place // len(ATTACKS)],
        "defense": DEFENSES[defense], "config": {**config, "defense": {**config["defense"], "name": DEFENSES[defense]}},
        "stages": [{**stage, **measured} for stage in base["stages"]],
    }  # fmt: skip


def make(folder: Path, count: int, template: Path) -> None:
    """Write ``count`` records as a store has them."""
    base = {name: value for name, value in files.read_json(template).items() if name != "sha256"}
    for number in range(count):
        record = files.seal(synthetic(base, number))
        place = folder / "runs" / record["key"]
        place.mkdir(parents=True)
        (place / "0001.json").write_text(json.dumps(record, indent=1))


def step(name: str, folder: Path) -> dict[str, Any]:
    """One step in this process: what it took, and what it found."""
    started = time.perf_counter()
    from backdoor_bench.report import frame, ranking, render_html, summary

    if name == "compact":
        found = frame.compact(folder).stat().st_size
        return _taken(started) | {"bytes": found}
    records = frame.load([folder])
    cells = summary.cells(records.runs)
    facts: dict[str, Any] = {"runs": len(records.runs), "cells": len(cells), "skipped": len(records.skipped)}
    if name == "page":
        medians, duels = ranking.tables(records.runs)
        text = render_html.page([("Ranking", [*medians, *duels])], records.notes(), cells, records.runs)
        (folder / "page.html").write_text(text)
        facts["bytes"] = len(text.encode())
        return _taken(started) | facts | {"opens_in_ms": opens(folder / "page.html")}
    return _taken(started) | facts


def opens(page: Path) -> list[int] | None:
    """Milliseconds from asking for the page until its script has drawn it, three times; None without a browser."""
    browser = shutil.which("chromium")
    found = []
    for _ in range(3 if browser else 0):
        with tempfile.TemporaryDirectory() as profile:
            command = [str(browser), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"file://{page.resolve()}"]
            document = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found += [int(ms) for ms in re.findall(r'data-ready="(\d+)"', document)]
    return found or None


def _taken(started: float) -> dict[str, Any]:
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = os.cpu_count() or 1
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(sum(used.ru_utime + used.ru_stime for used in (own, workers)), 2),
        "peak_mib": round((own.ru_maxrss + cores * workers.ru_maxrss) / 1024, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--template", type=Path, default=None, help="a record to vary (default: one of results/core)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep the records here (default: a temporary folder)")
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(step(options.step, options.folder)))
        return 0
    template = options.template or next(Path("results/core/runs").glob("0fb4928cffca0ce08011/*.json"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "runs").is_dir():
            make(folder, options.count, template)
        found: dict[str, Any] = {
            "records": f"{options.count} synthetic, of {template.stat().st_size} bytes each",
            "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0],
            "python": platform.python_version(),
        }
        for name in STEPS:
            command = [sys.executable, "-m", "benchmarks.report", "--step", name, "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout)
            print(f"{name}: {found[name]}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    read = found["read"]
    return int(read["seconds"] > LIMITS["seconds"] or read["peak_mib"] > LIMITS["mib"])


if __name__ == "__main__":
    sys.exit(main())
