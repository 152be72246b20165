"""Jobs that can start now, by victim."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping

from backdoor_bench.sweep.job import Job


class Queue:
    """Victims in the order in which they came, each with its jobs in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, deque[Job]] = OrderedDict()

    def push(self, job: Job, first: bool = False) -> None:
        """Behind the other jobs of its victim, or before them."""
        jobs = self._jobs.setdefault(job.victim, deque())
        (jobs.appendleft if first else jobs.append)(job)

    def pop(self, victim: str) -> Job:
        """The first job of a victim that has any."""
        jobs = self._jobs[victim]
        job = jobs.popleft()
        if not jobs:
            del self._jobs[victim]
        return job

    def longest(self) -> str | None:
        """The victim with the most jobs; None if there are none."""
        return max(self._jobs, key=lambda victim: len(self._jobs[victim]), default=None)

    def jobs(self) -> Iterator[Job]:
        for jobs in self._jobs.values():
            yield from jobs

    def clear(self) -> None:
        self._jobs.clear()

    def __contains__(self, victim: str) -> bool:
        return victim in self._jobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)


def following(jobs: Iterable[Job], dependents: Mapping[str, Iterable[Job]]) -> set[str]:
    """Keys of these jobs and of all that can start after them, directly or not."""
    found = {job.key for job in jobs}
    front = list(found)
    while front:
        new = [job.key for job in dependents.get(front.pop(), ())]
        found.update(new)
        front.extend(new)
    return found
