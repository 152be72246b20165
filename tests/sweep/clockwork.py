"""A schedule by hand, with a clock that only the test moves."""

from __future__ import annotations

from backdoor_bench.sweep.job import Job, Report, Result
from backdoor_bench.sweep.schedule import Schedule

OK = Report("ok", seconds=1.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def job(key: str, victim: str = "v", needs: str | None = None, estimate: float | None = None) -> Job:
    return Job(key, victim, {}, f"label of {key}", needs, estimate)


def schedule(*jobs: Job, workers: str = "ab", seconds: float | None = None, device: str | None = None) -> Schedule:
    """Workers named by letters, each on a device of its own unless all share one; ``seconds`` until the deadline."""
    clock = Clock()
    made = Schedule(jobs, None if seconds is None else clock.now + seconds, clock)
    for worker in workers:
        made.add(worker, device or f"device of {worker}")
    return made


def key(assigned: Job | None) -> str | None:
    return None if assigned is None else assigned.key


def results(made: Schedule) -> dict[str, Result]:
    return {result.key: result for result in made.drain()}
