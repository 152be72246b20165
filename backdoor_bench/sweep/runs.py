"""The work of the benchmark's own sweeps: runs over one store, in a process that keeps data and victims."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import torch

from backdoor_bench import experiment
from backdoor_bench.bench import Bench
from backdoor_bench.errors import ConfigError
from backdoor_bench.store import Store
from backdoor_bench.sweep.job import Job, Report
from backdoor_bench.tracking import pending


class Runs:
    """Runs jobs one after the other over a warm :class:`Bench`; it never waits for another process."""

    def __init__(self, store_dir: str) -> None:
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if threads.isdigit():
            torch.set_num_threads(int(threads))
        self._store = Store(store_dir, wait=False)
        self.bench = Bench(self._store)

    def __call__(self, job: Job) -> Report:
        started = time.monotonic()
        plan = self.bench.plan(pending.in_sweep(job.config))
        if plan.key != job.key:
            raise ConfigError(
                f"this run was planned as {job.key} and is {plan.key} here; plan it on a machine like this one, or "
                "give device and trainer.precision instead of auto"
            )
        done = experiment.run_plan(plan, self.bench)
        return Report("found" if done.found else "ok", None, _without_config(done.record), time.monotonic() - started)

    def release(self) -> None:
        """Forget data and victims; give the CUDA memory back."""
        self.bench = Bench(self._store)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def give_up(self, job: Job, reason: str) -> None:
        """Write the failed attempt of a run whose worker was lost."""
        plan = self.bench.plan(job.config)
        failed = {**experiment.describe(plan, time.time()), "key": job.key, "victim": job.victim}
        with self._store.claim(f"run-{job.key}"):
            self._store.add_record(job.key, {**failed, "status": "failed", "reason": reason, "seconds": 0.0})


def _without_config(record: Any) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "config"}
