"""Work whose jobs do what their key says."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from typing import ClassVar

from backdoor_bench.sweep.job import Job, Report


class Scripted:
    """Work whose jobs do what their key says."""

    given_up: ClassVar[deque[tuple[str, str]]] = deque()

    def __call__(self, job: Job) -> Report:
        if job.key.startswith("raise"):
            raise ValueError("no good")
        if job.key.startswith("interrupt"):
            for _ in range(job.config["times"]):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        return Report("ok", None, {"weak_attack": job.key == "weak", "at_chance": job.key == "2"})

    def release(self) -> None:
        """Keeps nothing."""

    def give_up(self, job: Job, reason: str) -> None:
        self.given_up.append((job.key, reason))


def job(key: str, needs: str | None = None, **config: object) -> Job:
    return Job(key, "v", config, f"label of {key}", needs)
