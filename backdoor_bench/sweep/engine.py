"""Runs the jobs of a plan, on many devices or one after the other, and always comes to an end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_bench import progress
from backdoor_bench.errors import BenchError, BusyError, ConfigError
from backdoor_bench.store import Store, files
from backdoor_bench.sweep.estimate import TIME_LIMIT, seconds_of
from backdoor_bench.sweep.interruption import Interruption
from backdoor_bench.sweep.job import Job, Result
from backdoor_bench.sweep.pool import Done, HereAndNow, Lost, Pool, Ready
from backdoor_bench.sweep.schedule import Schedule
from backdoor_bench.sweep.watch import Watch
from backdoor_bench.sweep.worker import MakeWork, runs

SECONDS_BETWEEN_LOOKS = 0.5
TRIES = 10
"""How often a failure is recorded that another process keeps from being recorded."""
INTERRUPTED = ("interrupted", "abandoned")


@dataclass(frozen=True)
class Summary:
    """How a sweep ended.

    Args:
        counts: results by status.
        weak: how many of the runs have a victim whose attack success rate is too low to tell defenses apart.
        at_chance: how many have a victim or a purified network that is no working classifier.
        failures: (label, reason) of what failed, the first hundred.
        seconds: that it took.
        stopped: why it ended before everything was started, or None.
        retry_file: with the keys of what failed, a line each; None if nothing did.
    """

    counts: Mapping[str, int]
    weak: int
    at_chance: int
    failures: tuple[tuple[str, str], ...]
    seconds: float
    stopped: str | None = None
    retry_file: Path | None = None

    @property
    def exit_status(self) -> int:
        """1 if a run failed or none can be done any more, 130 after an interruption, else 0 (also after a budget)."""
        if self.counts["failed"] or self.stopped not in (None, *INTERRUPTED):
            return 1
        return 130 if self.stopped is not None else 0


def run(
    jobs: Iterable[Job],
    store: Store | Path | str,
    *,
    name: str = "sweep",
    workers: int | None = None,
    gpus_per_worker: float = 1.0,
    address: str | None = None,
    budget_seconds: float | None = None,
    time_limit: str | None = None,
    on_result: Callable[[Job, Result], None] | None = None,
    resume_command: str | None = None,
    retry_command: Callable[[Path], str] | str | None = None,
    make_work: MakeWork | None = None,
    pool: Pool | None = None,
) -> Summary:
    """Run jobs until each has its result; prints progress and a summary.

    Args:
        jobs: see :class:`Job`.
        store: the store, or its folder.
        name: of the sweep, for people and ``python -m backdoor_bench.sweep status``.
        workers: how many at once. None: one per GPU, else one per core, or one in this process where Ray is not
            installed. 1 without an address: in this process.
        gpus_per_worker: 0.25 puts four workers on each GPU.
        address: of a running Ray cluster, or ``auto``; None: Ray is started here and stopped at the end.
        budget_seconds: start nothing that is not expected to end within them.
        time_limit: as in ``2h``; a job that is under way for longer has failed, and its worker is killed for it. A job
            in this process nobody can end.
        on_result: called here with each job and its result, as they come.
        resume_command: what to type to go on after an interruption.
        retry_command: what to type to retry what failed, or a function that makes it from the retry file's path.
        make_work: what workers do with a job; None: runs of the benchmark over the store.
        pool: the workers themselves, instead of those that ``workers`` and ``address`` describe.

    Raises:
        BenchError: Ray is missing and was asked for, its address is dead, no worker starts, or the store cannot be
            written; nothing was started. Where something was, the summary says what stopped it.
    """
    started = time.monotonic()
    root = store.root if isinstance(store, Store) else Path(store).resolve()
    jobs = list(jobs)
    known = {job.key: job for job in jobs}
    make_work = make_work or runs(root)
    schedule = Schedule(jobs, None if budget_seconds is None else started + budget_seconds)
    files.leftovers(root / "tmp", remove=True)
    driver = _Driver(schedule, known, on_result, make_work, time_limit)
    with Watch(root, name, schedule, resume_command) as watch:
        driver.watch = watch
        if schedule.finished:
            driver.tell()
        else:
            pool = pool or _pool(make_work, jobs, workers, gpus_per_worker, address)
            if time_limit is not None and isinstance(pool, HereAndNow):
                progress.say(
                    f"{TIME_LIMIT}={time_limit} cannot be kept: without Ray's workers there is nobody to end a run"
                )
            watch.begin(live=not isinstance(pool, HereAndNow))  # in this process runs show their own progress
            driver.drive(pool)
        summary = Summary(
            schedule.counts, schedule.weak, schedule.at_chance, tuple(watch.failures), time.monotonic() - started,
            driver.stopped, watch.retry_file,
        )  # fmt: skip
        if callable(retry_command):
            retry_command = retry_command(watch.retry_file) if watch.retry_file is not None else None
        watch.end(summary, resume_command, retry_command)
    return summary


class _Driver:
    """Passes jobs to workers and results to whoever wants them, until there are none left."""

    watch: Watch

    def __init__(
        self,
        schedule: Schedule,
        jobs: Mapping[str, Job],
        on_result: Callable[[Job, Result], None] | None,
        make_work: MakeWork,
        time_limit: str | None,
    ) -> None:
        self.stopped: str | None = None
        self._schedule = schedule
        self._started = False
        self._jobs = jobs
        self._on_result = on_result
        self._make_work = make_work
        self._limit = seconds_of(time_limit, TIME_LIMIT)
        self._too_long = f"longer than {TIME_LIMIT}={time_limit}"

    def drive(self, pool: Pool) -> None:
        schedule, abandon = self._schedule, True
        with Interruption() as interruption:
            try:
                while not schedule.finished:
                    if interruption.asked and self.stopped is None:
                        self.stopped = "interrupted"
                        schedule.stop("the sweep was interrupted")
                        self.watch.stopping(len(schedule.running))
                    schedule.expire()
                    self._end_overdue(pool)
                    self._start(pool)
                    self.tell()
                    self.watch.estimate()
                    if not schedule.finished:
                        self._hear(pool.wait(self._patience()))
                abandon = False
            except (KeyboardInterrupt, SystemExit):  # Lightning turns an interruption inside a fit into an exit
                self.stopped = "abandoned"
                schedule.stop("the sweep was interrupted in the middle of it", running=True)
            except BenchError as error:  # there are no workers any more
                if not self._started:
                    raise
                self.stopped = str(error)
                schedule.stop(self.stopped, running=True)
            finally:
                self.tell()
                pool.close(abandon)

    def tell(self) -> None:
        """Pass on the results so far."""
        for result in self._schedule.drain():
            job = self._jobs[result.key]
            self.watch.result(job, result)
            if self._on_result is not None:
                self._on_result(job, result)

    def _start(self, pool: Pool) -> None:
        running = self._schedule.running
        for worker, place in list(self._schedule.workers.items()):
            if worker in running:
                continue
            job = self._schedule.assign(worker)
            if job is None:
                continue
            if self._schedule.is_alone(worker):
                pool.release(
                    other for other, its in self._schedule.workers.items()
                    if its.device == place.device and other != worker
                )  # fmt: skip
            self._started = True
            self.watch.start(worker, job)
            pool.start(worker, job)

    def _end_overdue(self, pool: Pool) -> None:
        for worker in self._schedule.overdue(self._limit) if self._limit is not None else ():
            pool.kill(worker)
            self._lost(worker, self._too_long, again=False)

    def _hear(self, events: Iterable[Any]) -> None:
        for event in events:
            match event:
                case Ready(worker, device):
                    self._schedule.add(worker, device)
                    self.watch.ready(worker)
                case Done(worker, report):
                    self.watch.stop(worker, self._schedule.running[worker] if report.outcome == "busy" else None)
                    self._schedule.report(worker, report)
                case Lost(worker, reason):
                    self._lost(worker, reason)

    def _lost(self, worker: str, reason: str, again: bool = True) -> None:
        job = self._schedule.running.get(worker)
        failed = self._schedule.lost(worker, reason, again)
        self.watch.lost(worker, reason, job if job is not None and job in self._schedule else None)
        if failed is not None:
            self._record(failed, f"its worker was lost again and again: {reason}" if again else reason)

    def _record(self, job: Job, reason: str) -> None:
        """The failed attempt of a job that nobody is left to record."""
        for tries_left in reversed(range(TRIES)):
            try:
                self._make_work().give_up(job, reason)
            except Exception as error:
                if tries_left and isinstance(error, BusyError):  # a process just killed has its locks for a moment
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    continue
                progress.say(
                    f"the failure of {job.label} could not be recorded ({error}); its result says so all the same"
                )
            return

    def _patience(self) -> float:
        wake = self._schedule.next_wake()
        return SECONDS_BETWEEN_LOOKS if wake is None else min(SECONDS_BETWEEN_LOOKS, max(0.01, wake - time.monotonic()))


def _pool(
    make_work: MakeWork, jobs: list[Job], workers: int | None, gpus_per_worker: float, address: str | None
) -> Pool:
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: expected 1 or more")
    if workers == 1 and address is None:
        return HereAndNow(make_work)
    try:
        from backdoor_bench.sweep import ray_pool
    except ImportError:
        if workers is None and address is None:
            progress.say("Ray is not installed: one run after the other (pip install 'backdoor_bench[sweep]' for more)")
            return HereAndNow(make_work)
        raise ConfigError(
            "several workers need Ray, which is not installed: pip install 'backdoor_bench[sweep]', or workers=1"
        ) from None
    on_cpu = bool(jobs) and all(job.config.get("device") == "cpu" for job in jobs)
    return ray_pool.connect(make_work, workers, 0.0 if on_cpu else gpus_per_worker, address) or HereAndNow(make_work)
