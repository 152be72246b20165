"""Work that only sleeps, for tests and benchmarks of the engine: no torch, no store."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from backdoor_bench.sweep.job import Job, Report


class Sleeping:
    """Sleeps ``job.config["seconds"]`` and appends a line per job that it ended to ``folder/log``.

    ``job.config["kills"]``: how many attempts at this job end with a SIGKILL of their process.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)

    def __call__(self, job: Job) -> Report:
        started = time.monotonic()
        deaths = self._folder / f"{job.key}.deaths"
        died = len(deaths.read_text()) if deaths.exists() else 0
        if died < job.config.get("kills", 0):
            deaths.write_text("x" * (died + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(job.config.get("seconds", 0.0))
        self._append("log", job.key)
        threads = os.environ.get("OMP_NUM_THREADS")
        facts = {"pid": os.getpid(), "threads": threads, "nice": os.nice(0), "folder": os.getcwd()}
        return Report("ok", None, facts, time.monotonic() - started)

    def release(self) -> None:
        """Keeps nothing."""

    def give_up(self, job: Job, reason: str) -> None:
        self._append("given_up", job.key)

    def _append(self, name: str, line: str) -> None:
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)
