"""Which job starts where and when, and what becomes of it: pure bookkeeping, without processes, Ray or torch."""

from __future__ import annotations

import heapq
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import get_args

from backdoor_bench.sweep.job import OVER, VICTIM_FAILED, Job, Report, Result, Status
from backdoor_bench.sweep.pace import Outlook, Pace
from backdoor_bench.sweep.queue import Queue, following

RETRIES = 2
"""How often a job whose worker was lost is started again."""

VICTIMS_KEPT = 4
"""How many victims a worker is taken to have in memory; ``Bench`` keeps as many."""

PATIENCE = (1.0, 2.0, 5.0, 10.0)
"""Seconds until a job that another process works on is asked for again; the last one ever after."""


@dataclass
class _Worker:
    device: str
    victims: deque[str] = field(default_factory=lambda: deque(maxlen=VICTIMS_KEPT))
    job: Job | None = None
    since: float = 0.0


@dataclass
class _Past:
    """What a job has been through before its result."""

    attempts: int = 0
    seconds: float = 0.0
    waits: int = 0
    alone: bool = False


class Schedule:
    """The state of a sweep.

    A driver tells it of workers (:meth:`add`, :meth:`lost`) and of what they report (:meth:`report`), asks for jobs
    (:meth:`assign`) and takes the results (:meth:`drain`) until :attr:`finished`.

    - A job starts when the job that it ``needs`` is done. If that one fails or is skipped, so is the job.
    - Jobs of one victim go to the worker that has it in memory, until another worker has nothing else to do.
    - A job that should not end before ``deadline`` (see :class:`Pace`) is skipped; one of unknown length starts.
    - A lost worker's job is started again up to :data:`RETRIES` times, then it failed. An exception is a failure.
    - Out of memory: once more, alone on that device.
    - Busy (another process works on it): asked for again later; the worker does others meanwhile.
    - Once stopped, nothing is asked for again.

    Args:
        jobs: any order; of several with the same key the first counts. A ``needs`` outside of them counts as done.
        deadline: on ``clock``, or None.
        clock: seconds, monotonic.
    """

    def __init__(
        self, jobs: Iterable[Job], deadline: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._deadline = deadline
        self._left: dict[str, Job] = {}
        for job in jobs:
            self._left.setdefault(job.key, job)
        self.total = len(self._left)
        self.counts: dict[str, int] = dict.fromkeys(get_args(Status), 0)
        self.weak = self.at_chance = 0
        self.workers: dict[str, _Worker] = {}
        self._past: defaultdict[str, _Past] = defaultdict(_Past)
        self._ready = Queue()
        self._dependents: defaultdict[str, list[Job]] = defaultdict(list)
        self._deferred: list[tuple[float, int, Job]] = []
        self._number = count()
        self._alone: defaultdict[str, deque[Job]] = defaultdict(deque)
        self._reserved: dict[str, str] = {}
        self._pace = Pace()
        self._results: deque[Result] = deque()
        self._stopped: str | None = None
        for job in self._left.values():
            if job.needs in self._left and job.needs != job.key:
                self._dependents[job.needs].append(job)
        waiting = {job.key for jobs in self._dependents.values() for job in jobs}
        for job in self._left.values():
            if job.key not in waiting:
                self._ready.push(job)
        self._hopeless()

    # -- what a driver asks ----------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every job has its result."""
        return not self._left

    def __contains__(self, job: Job) -> bool:
        """Whether it has no result yet."""
        return job.key in self._left

    @property
    def running(self) -> dict[str, Job]:
        """The jobs under way, by worker."""
        return {name: worker.job for name, worker in self.workers.items() if worker.job is not None}

    def drain(self) -> Iterator[Result]:
        """The results since the last call."""
        while self._results:
            yield self._results.popleft()

    def assign(self, worker: str) -> Job | None:
        """The job that this idle worker should start now; None if there is none for it at this moment."""
        self._wake()
        while (job := self._choose(worker)) is not None:
            if self._fits(job):
                place = self.workers[worker]
                place.job, place.since = job, self._clock()
                if job.victim in place.victims:
                    place.victims.remove(job.victim)
                place.victims.append(job.victim)
                self._past[job.key].attempts += 1
                return job
            self._reserved.pop(self.workers[worker].device, None)
            self._end(job, "skipped", OVER)
        return None

    def is_alone(self, worker: str) -> bool:
        """Whether the worker's device is reserved for its job; the others there should free their memory."""
        return self._reserved.get(self.workers[worker].device) == worker

    def next_wake(self) -> float | None:
        """When a deferred job is to be asked for again, on ``clock``; None if there is none."""
        return self._deferred[0][0] if self._deferred else None

    def trains(self, job: Job) -> bool:
        """Whether others wait for this job: it trains their victim."""
        return job.key in self._dependents

    def expected(self, job: Job) -> float | None:
        """Seconds that a job should take, from its start; None if nothing like it has ended yet."""
        return self._pace.expected(job, self.trains(job))

    def overdue(self, limit: float) -> list[str]:
        """The workers that have been at their job for more seconds than ``limit``."""
        now = self._clock()
        return [name for name, worker in self.workers.items() if worker.job is not None and now - worker.since > limit]

    def outlook(self) -> Outlook:
        """What is left to do."""
        now = self._clock()
        begun = {worker.job.key: now - worker.since for worker in self.workers.values() if worker.job is not None}
        return self._pace.outlook(self._left, begun, self._dependents, len(self.workers))

    # -- what a driver tells ---------------------------------------------------------------------------------------

    def add(self, worker: str, device: str) -> None:
        """A worker is ready for jobs. ``device``: workers of the same one share its memory."""
        self.workers[worker] = _Worker(device)

    def report(self, worker: str, report: Report) -> None:
        """What a worker says of the job that it was given."""
        job = self._take(worker)
        past = self._past[job.key]
        past.seconds += report.seconds
        match report.outcome:
            case "busy" | "memory" if self._stopped is not None:
                self._end(job, "skipped", self._stopped)
            case "busy":
                past.attempts -= 1
                wait = PATIENCE[min(past.waits, len(PATIENCE) - 1)]
                past.waits += 1
                heapq.heappush(self._deferred, (self._clock() + wait, next(self._number), job))
            case "memory" if not past.alone:
                past.alone = True
                self._alone[self.workers[worker].device].append(job)
            case "ok" | "found":
                again = report.outcome == "found" and past.attempts > 1  # done by the worker that was lost
                self._end(job, "ok" if again else report.outcome, None, report, worker)
            case _:
                self._end(job, "failed", report.reason, report, worker)
        if report.outcome == "unwritable":
            self.stop(f"nothing can be written: {report.reason}")

    def lost(self, worker: str, reason: str, again: bool = True) -> Job | None:
        """A worker is gone. Returns its job if that has now failed for good, so that it can be recorded.

        Without ``again`` it has: the worker was killed for it.
        """
        place = self.workers.get(worker)
        job = self._take(worker) if place is not None and place.job is not None else None
        gone = self.workers.pop(worker, None)
        if gone is not None and not any(other.device == gone.device for other in self.workers.values()):
            self._reserved.pop(gone.device, None)
            for waiting in self._alone.pop(gone.device, ()):
                self._past[waiting.key].alone = False
                self._ready.push(waiting)
        if job is None or gone is None:
            return None
        past = self._past[job.key]
        if not again:
            past.seconds += self._clock() - gone.since
        elif self._stopped is not None:
            self._end(job, "skipped", self._stopped)
            return None
        elif past.attempts <= RETRIES:
            self._ready.push(job, first=True)
            return None
        else:
            reason = f"its worker was lost {past.attempts} times, the last time: {reason}"
        self._end(job, "failed", reason, None, worker)
        return job

    def stop(self, reason: str, running: bool = False) -> None:
        """Start nothing more: what has not started is skipped; with ``running``, what has started as well."""
        self._stopped = reason
        busy = set() if running else {job.key for job in self.running.values()}
        for job in list(self._left.values()):
            if job.key not in busy:
                self._end(job, "skipped", reason, cascade=False)
        self._ready.clear()
        self._deferred.clear()
        self._alone.clear()

    def expire(self) -> None:
        """Skip what has not started once the budget is over: where there is no worker, nobody else is refused it."""
        if self._deadline is not None and self._stopped is None and self._clock() >= self._deadline:
            self.stop(OVER)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _choose(self, worker: str) -> Job | None:
        place = self.workers[worker]
        others = [other for name, other in self.workers.items() if name != worker]
        neighbours = [other for other in others if other.device == place.device]
        if place.device in self._reserved:
            return None
        if self._alone[place.device]:
            if any(other.job is not None for other in neighbours):
                return None
            self._reserved[place.device] = worker
            return self._alone[place.device].popleft()
        for victim in reversed(place.victims):
            if victim in self._ready:
                return self._ready.pop(victim)
        taken = {other.victims[-1] for other in others if other.victims}
        for victim in self._ready:
            if victim not in taken:
                return self._ready.pop(victim)
        longest = self._ready.longest()
        return None if longest is None else self._ready.pop(longest)

    def _take(self, worker: str) -> Job:
        place = self.workers[worker]
        job, place.job = place.job, None
        if job is None:
            raise ValueError(f"worker {worker} has no job to report on")
        if self._reserved.get(place.device) == worker:
            del self._reserved[place.device]
        return job

    def _wake(self) -> None:
        now = self._clock()
        while self._deferred and self._deferred[0][0] <= now:
            self._ready.push(heapq.heappop(self._deferred)[2])

    def _fits(self, job: Job) -> bool:
        if self._deadline is None:
            return True
        left = self._deadline - self._clock()
        return left > 0 and (self.expected(job) or 0.0) <= left

    def _end(
        self,
        job: Job,
        status: Status,
        reason: str | None = None,
        report: Report | None = None,
        worker: str | None = None,
        cascade: bool = True,
    ) -> None:
        if job.key not in self._left:
            return
        del self._left[job.key]
        past = self._past.pop(job.key, _Past())
        self.counts[status] += 1
        record = report.record if report is not None else None
        if report is not None and report.outcome == "ok":
            self._pace.note(job, self.trains(job), past.seconds)
        if record is not None:
            self.weak += bool(record.get("weak_attack"))
            self.at_chance += bool(record.get("victim_at_chance") or record.get("at_chance"))
        self._results.append(Result(job.key, status, reason, record, worker, past.seconds, past.attempts))
        for dependent in self._dependents.pop(job.key, ()) if cascade else ():
            if dependent.key not in self._left:
                continue
            if status in ("ok", "found"):
                self._ready.push(dependent)
            else:
                what = VICTIM_FAILED if status == "failed" else "its victim was not trained"
                self._end(dependent, "skipped", f"{what} ({job.label}): {reason}")

    def _hopeless(self) -> None:
        """Jobs that wait for one another in a circle would never start."""
        reachable = following(self._ready.jobs(), self._dependents)
        for job in [job for job in self._left.values() if job.key not in reachable]:
            self._end(replace(job, needs=None), "skipped", "the jobs that it needs wait for itself", cascade=False)
