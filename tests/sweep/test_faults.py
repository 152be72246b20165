"""``kill -9`` over real runs of the benchmark: after resuming, the records are those of an undisturbed sweep."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_bench.bench import Bench
from backdoor_bench.store import Store
from backdoor_bench.sweep import engine
from backdoor_bench.sweep.job import Job
from tests.sweep import arithmetic

KILLS = int(os.environ.get("BACKDOOR_BENCH_KILLS", "6"))
# The revision: a checkout may be committed to while this runs.
TIMES = (
    "started", "seconds", "victim_seconds", "process_peak_mib_so_far", "sha256", "victim_was", "store_dir", "purified",
    "revision",
)  # fmt: skip


def sweep(jobs: list[Job], root: Path) -> None:
    sys.exit(engine.run(jobs, root, workers=1).exit_status)


def start(jobs: list[Job], root: Path) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=sweep, args=(jobs, root))
    process.start()
    return process


def timeless(value: Any) -> Any:
    """A record without what may differ between two days."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if name not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def records(root: Path) -> dict[str, Any]:
    return {record["key"]: timeless(record) for record in Store(root).records()}


def weights(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("[vp]*/*/*.safetensors")}


@pytest.mark.slow
def test_killed_at_random_moments_real_runs_end_as_if_nothing_had_been(compose: Callable, tmp_path: Path) -> None:
    """Two victims, three defenses, one with its purified network kept; ``BACKDOOR_BENCH_KILLS=30`` for more kills."""
    bench, jobs = Bench(Store(tmp_path / "plans")), []
    for attack in ("badnet", "blended"):
        for defense in (None, "clp", "ft", "unibp"):
            chosen = [] if defense is None else [f"+defense={defense}", "save_purified=true"]
            plan = bench.plan(compose(f"+attack={attack}", *chosen))
            trains = jobs[-1].needs or jobs[-1].key if defense is not None else None
            jobs.append(Job(plan.key, plan.victim_key, plan.config, f"{attack} {defense}", trains))
    quiet, stormy, draw = tmp_path / "quiet", tmp_path / "stormy", random.Random(3)
    began = time.monotonic()
    calm = start(jobs, quiet)
    calm.join(300)
    whole = time.monotonic() - began
    assert calm.exitcode == 0
    killed = 0
    for _ in range(KILLS):
        process = start(jobs, stormy)
        process.join(draw.uniform(0.02, 0.5) * whole)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join(60)
    last = start(jobs, stormy)
    last.join(300)
    assert last.exitcode == 0
    assert killed
    assert len(records(quiet)) == len(jobs) == 8
    assert records(stormy) == records(quiet)
    assert weights(stormy) == weights(quiet)
    assert len(weights(quiet)) == 2 * 3 + 6
    assert not arithmetic.litter(stormy)
