"""Work that only sleeps, for tests and benchmarks of the engine: no torch, no store."""

from __future__ import annotations

import os
import time
from pathlib import Path

from backdoor_bench.sweep.job import Job, Report


class Sleeping:
    """Sleeps ``job.config["seconds"]`` (else ``seconds``) and appends a line per job that it ended to ``log``."""

    def __init__(self, log: Path | str, seconds: float = 0.0) -> None:
        self._log = log
        self._seconds = seconds

    def __call__(self, job: Job) -> Report:
        time.sleep(float(job.config.get("seconds", self._seconds)))
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{job.key} {os.getpid()}\n".encode())
        os.close(descriptor)
        return Report("ok", seconds=self._seconds)

    def release(self) -> None:
        """Keeps nothing."""

    def give_up(self, job: Job, reason: str) -> None:
        """Records nothing."""
