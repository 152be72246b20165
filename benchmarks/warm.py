"""What one more run costs in a process that has the victim and the data: everything but the defense's arithmetic."""

from __future__ import annotations

import io
import json
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean

from backdoor_bench import command, metric

JOB = ("+attack=badnet", "+defense=ft", "recipe.epochs=1", "defense.epochs=1")


def one_more_run(store: Path, jobs: int = 8) -> dict[str, float]:
    """Seconds per job of a multirun over repetitions on digits, after a first job has trained the victim.

    Hydra's composing, planning, the clean draw, copies, measuring and writing the record are all in it. ``evaluation``
    is the measuring alone.
    """
    _multirun(store, range(1))
    measuring: list[float] = []
    original = metric.Evaluator.measure

    def timed(self: metric.Evaluator, network: object) -> metric.Measurement:
        started = time.perf_counter()
        try:
            return original(self, network)  # type: ignore[arg-type]
        finally:
            measuring.append(time.perf_counter() - started)

    metric.Evaluator.measure = timed  # type: ignore[assignment, method-assign]
    try:
        wall = _multirun(store, range(1, 1 + jobs)) / jobs
    finally:
        metric.Evaluator.measure = original  # type: ignore[method-assign]
    records = [json.loads(path.read_text()) for path in store.glob("runs/*/*.json")]
    defense = mean(sum(s["seconds"] for s in record["stages"]) for record in records if record["repetition"])
    return {
        "wall": wall,
        "defense": defense,
        "fixed": wall - defense,
        "evaluation": sum(measuring) / jobs,
        "jobs": jobs,
    }


def _multirun(store: Path, repetitions: range) -> float:
    places = (f"store_dir={store}", f"hydra.sweep.dir={store}/jobs")
    sweep = f"repetition={','.join(map(str, repetitions))}"
    started = time.perf_counter()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        failed = command.main(["-m", *JOB, *places, sweep])
    if failed:
        raise RuntimeError(f"a job failed: {said.getvalue()[-1000:]}")
    return time.perf_counter() - started
