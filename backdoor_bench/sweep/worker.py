"""What runs on a device: a job from its configuration to a report. Nothing heavy is imported before it is built."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from backdoor_bench.errors import BenchError, BusyError, UnwritableError
from backdoor_bench.sweep.job import Job, Report


class Work(Protocol):
    """What a worker can do, whatever the jobs are."""

    def __call__(self, job: Job) -> Report:
        """Do a job. May raise: :func:`attempt` makes a report of it."""

    def release(self) -> None:
        """Give back what is kept between jobs: another one needs the memory."""

    def give_up(self, job: Job, reason: str) -> None:
        """Record that a job failed whose worker can no longer say so."""


NO_DEVICE_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""What torch, the CUDA runtime and its libraries (cuBLAS, cuDNN) say when a device is full; none breaks the context."""

MakeWork = Callable[[], Work]
"""Called once in each worker; pickled on the way there."""


def runs(store_dir: Path | str) -> MakeWork:
    """Work that is runs of the benchmark, over one store."""
    return partial(_runs, str(store_dir))


def _runs(store_dir: str) -> Work:
    from backdoor_bench.sweep.runs import Runs  # torch and all the rest

    return Runs(store_dir)


def attempt(work: Work, job: Job) -> Report:
    """Do a job; whatever it raises becomes a report."""
    started = time.monotonic()
    try:
        return work(job)
    except Exception as error:
        outcome, broken = _classify(error)
        reason = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
    if outcome == "memory":
        work.release()
    gc.collect(0)
    return Report(outcome, reason.strip(), None, time.monotonic() - started, broken)  # type: ignore[arg-type]


def _classify(error: Exception) -> tuple[str, bool]:
    """The outcome that an exception is, and whether it leaves a process with which nothing more can be done."""
    if isinstance(error, BusyError):
        return "busy", False
    if isinstance(error, UnwritableError):
        return "unwritable", False
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_DEVICE_MEMORY):
            return "memory", False
        if isinstance(error, torch.AcceleratorError):  # the CUDA context is lost: every later call would fail too
            return "failed", True
    return "failed", False
