"""How many cores there are for this process: under SLURM, taskset or in a container fewer than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def available() -> int:
    """Those that it may run on, or as many as a quota of processor time is worth; at least 1.

    More threads than a quota allows are slower, not faster: all are halted together when it is used up.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas()])))


def _quotas() -> Iterator[float]:
    """What the control groups around this process allow, in either version of the kernel's interface."""
    with suppress(OSError, ValueError):
        for line in OWN.read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            # A container sees its own group as the root, whatever name it has outside.
            for group in {"/", place, *map(str, PurePosixPath(place).parents)}:
                if controllers == "":
                    yield from _quota(GROUPS / group.lstrip("/") / "cpu.max")
                elif "cpu" in controllers.split(","):
                    folder = GROUPS / "cpu" / group.lstrip("/")
                    yield from _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _quota(*files: Path) -> Iterator[float]:
    """``200000 100000`` (microseconds in a period) as 2.0; nothing for ``max``, for -1, and where there is no file."""
    with suppress(OSError, ValueError):
        quota, period = map(int, " ".join(file.read_text() for file in files).split())
        if quota > 0:
            yield quota / period
