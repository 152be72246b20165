"""What a plan hands to an engine, and what an engine says of it: plain values that cross process borders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "found", "failed", "skipped"]
"""``found``: the record was there already. ``skipped``: never started (budget, interruption, a failed victim)."""


VICTIM_FAILED = "its victim failed"
"""How the reason of a job begins that was skipped for this."""

OVER = "it was not expected to end within the budget"
"""The reason of a job that was skipped for this."""


@dataclass(frozen=True)
class Job:
    """One run to do.

    Args:
        key: of the run, as ``Bench.plan`` makes it.
        victim: key of its victim. Jobs of one victim belong on one worker.
        config: the resolved configuration, plain values, as ``experiment.run`` takes it.
        label: what distinguishes it, for people: ``cifar10 badnet 0.1 unibp spc=10 repetition=3``.
        needs: key of the job that trains its victim, or None if the victim is there or it trains one itself.
        estimate: expected seconds, from past records of the same kind, or None if there are none.
    """

    key: str
    victim: str
    config: Mapping[str, Any]
    label: str
    needs: str | None = None
    estimate: float | None = None


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Args:
        key: of the job.
        status: see :data:`Status`.
        reason: why it failed or was skipped, one sentence; None otherwise.
        record: of the run, without its configuration; None where there is none.
        worker: which one did it, for people: ``cuda:0``, ``cpu 1``.
        seconds: at work on it, all attempts together that a worker could report; waiting is not among them.
        attempts: how often it was started.
    """

    key: str
    status: Status
    reason: str | None = None
    record: Mapping[str, Any] | None = None
    worker: str | None = None
    seconds: float = 0.0
    attempts: int = 1


@dataclass(frozen=True)
class Report:
    """What a worker says of one attempt at a job.

    Args:
        outcome: ``ok`` and ``found`` as in :data:`Status`; ``failed``: an exception; ``memory``: too little on
            the device; ``busy``: another process works on the same; ``unwritable``: the store takes nothing.
        reason: one sentence unless ``ok`` or ``found``.
        record: of the run, without its configuration, if there is one.
        seconds: that the attempt took.
        broken: nothing more can be done in the worker's process; it has to be replaced.
    """

    outcome: Literal["ok", "found", "failed", "memory", "busy", "unwritable"]
    reason: str | None = None
    record: Mapping[str, Any] | None = None
    seconds: float = 0.0
    broken: bool = False
