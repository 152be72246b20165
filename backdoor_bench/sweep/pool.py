"""What an engine drives: workers that take one job at a time and report. Here the one that is this process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from backdoor_bench.sweep.job import Job, Report
from backdoor_bench.sweep.worker import MakeWork, Work, attempt


@dataclass(frozen=True)
class Ready:
    """A worker can take jobs. ``device``: workers of the same one share its memory."""

    worker: str
    device: str


@dataclass(frozen=True)
class Done:
    """A worker reports on the job that it was given, and can take another."""

    worker: str
    report: Report


@dataclass(frozen=True)
class Lost:
    """A worker is gone, with its job if it had one."""

    worker: str
    reason: str


Event = Ready | Done | Lost


class Pool(Protocol):
    """Workers. Names are for people: ``cuda:0``, ``cpu 1``, ``node3 cuda:1``."""

    def start(self, worker: str, job: Job) -> None:
        """Give a job to an idle worker; returns at once."""

    def release(self, workers: Iterable[str]) -> None:
        """Have idle workers give back their memory, before another one runs alone on their device."""

    def kill(self, worker: str) -> None:
        """End a worker in the middle of its job, and say no more of either; another may take its place."""

    def wait(self, timeout: float) -> Sequence[Event]:
        """What happened; waits up to ``timeout`` seconds for something to happen."""

    def close(self, abandon: bool) -> None:
        """Stop the workers; with ``abandon`` in the middle of what they do."""


class HereAndNow:
    """One worker: this process. A job is done while the engine waits for it."""

    name = "this process"

    def __init__(self, make_work: MakeWork) -> None:
        self._make_work = make_work
        self._work: Work | None = None
        self._job: Job | None = None
        self._said_ready = False

    def start(self, worker: str, job: Job) -> None:
        self._job = job

    def release(self, workers: Iterable[str]) -> None:
        """There are no others."""

    def kill(self, worker: str) -> None:
        """Never asked for: while a job goes on here, nobody looks at the clock."""

    def wait(self, timeout: float) -> Sequence[Event]:
        if not self._said_ready:
            self._said_ready = True
            return [Ready(self.name, self.name)]
        if self._job is None:
            time.sleep(timeout)
            return []
        if self._work is None:
            self._work = self._make_work()
        job, self._job = self._job, None
        return [Done(self.name, attempt(self._work, job))]

    def close(self, abandon: bool) -> None:
        self._work = None
