"""How long jobs take: what past records say, set right by what the sweep itself has seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from backdoor_bench.sweep.job import Job


@dataclass(frozen=True)
class Outlook:
    """What is left of a sweep.

    Args:
        seconds: until its end, as far as known.
        unknown: how many jobs are not in it: nothing like them has ended yet, here or in the past.
    """

    seconds: float
    unknown: int


@dataclass
class _Seen:
    """What the jobs of one role have taken in this sweep; the last three of those alone that had an estimate."""

    number: int = 0
    seconds: float = 0.0
    foretold: int = 0
    estimated: float = 0.0
    taken: float = 0.0

    @property
    def factor(self) -> float:
        """How much longer than estimated; as if one more job had taken what it was to take, for one says little."""
        if not self.estimated:
            return 1.0
        mean = self.estimated / self.foretold
        return (self.taken + mean) / (self.estimated + mean)


class Pace:
    """What the sweep's own jobs took, by role: training a victim for others, or not."""

    def __init__(self) -> None:
        self._seen: defaultdict[bool, _Seen] = defaultdict(_Seen)

    def note(self, job: Job, trains: bool, seconds: float) -> None:
        """A job has ended well after so long."""
        seen = self._seen[trains]
        seen.number, seen.seconds = seen.number + 1, seen.seconds + seconds
        if job.estimate is not None:
            seen.foretold += 1
            seen.estimated, seen.taken = seen.estimated + job.estimate, seen.taken + seconds

    def expected(self, job: Job, trains: bool) -> float | None:
        """Seconds that a job should take; None as long as nothing is known of its like.

        A past on another machine, or an idler one, was right about what takes longer than what, and wrong by the same
        factor throughout. A job without a past takes what those of its role take in the mean.
        """
        seen = self._seen[trains]
        if job.estimate is not None:
            return job.estimate * seen.factor
        return seen.seconds / seen.number if seen.number else None

    def outlook(
        self, left: Mapping[str, Job], begun: Mapping[str, float], dependents: Mapping[str, Iterable[Job]], workers: int
    ) -> Outlook:
        """When the sweep ends, if no worker ever waits: but two do not share a job, and a defense follows its training.

        Args:
            left: jobs by key, those under way among them.
            begun: for how many seconds each of these has been.
            dependents: jobs that wait, by the key of what they wait for.
            workers: how many there are.
        """
        known = {}
        for key, job in left.items():
            seconds = self.expected(job, key in dependents)
            if seconds is not None:
                known[key] = max(0.0, seconds - begun.get(key, 0.0))
        longest = max(known.values(), default=0.0)
        for needed, jobs in dependents.items():
            after = max((known.get(job.key, 0.0) for job in jobs), default=0.0)
            longest = max(longest, known.get(needed, 0.0) + after)
        return Outlook(max(longest, sum(known.values()) / max(1, workers)), len(left) - len(known))
