"""Runs in small, through the real store: a victim that is obtained, a run that is claimed and recorded. No training."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from backdoor_bench.store import Store, Stored
from backdoor_bench.sweep.job import Job, Report

CHANGES = ("attempt", "started", "sha256")


class Arithmetic:
    """A victim is 64 numbers from its name; a run is their sum times its own number. Takes ``pause`` seconds each."""

    def __init__(self, root: Path, pause: float = 0.0) -> None:
        self.store = Store(root, wait=False)
        self._pause = pause

    def __call__(self, job: Job) -> Report:
        started = time.monotonic()
        with self.store.claim(f"run-{job.key}"):
            found = self.store.record(job.key)
            if found is not None:
                return Report("found", None, found)
            victim, _ = self.store.obtain("victims", job.victim, lambda: self._train(job.victim))
            time.sleep(self._pause)
            acc = float(victim.tensors["network"]["weight"].sum()) * job.config["number"]
            record = {
                "format": 1,
                "key": job.key,
                "victim": job.victim,
                "status": "ok",
                "acc": acc,
                "started": time.time(),
            }
            self.store.add_record(job.key, record)
            self._log("done")
        return Report("ok", None, record, time.monotonic() - started)

    def release(self) -> None:
        """Keeps nothing."""

    def give_up(self, job: Job, reason: str) -> None:
        self.store.add_record(job.key, {"key": job.key, "victim": job.victim, "status": "failed", "reason": reason})

    def _train(self, victim: str) -> Stored:
        self._log("trained")
        time.sleep(self._pause)
        draws = torch.Generator().manual_seed(int(victim[1:]))
        return Stored({"network": {"weight": torch.rand(64, generator=draws)}}, {"victim": victim})

    def _log(self, what: str) -> None:
        """A line per piece of work that was done, whoever did it."""
        descriptor = os.open(self.store.root / what, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b"done\n")
        os.close(descriptor)


def jobs(victims: int, runs: int) -> list[Job]:
    """A training per victim and the runs that need it."""
    made = []
    for v in range(victims):
        made.append(Job(f"t{v}", f"v{v}", {"number": 1}, f"train {v}"))
        made += [Job(f"r{v}-{n}", f"v{v}", {"number": n}, f"run {v} {n}", needs=f"t{v}") for n in range(runs)]
    return made


def results(root: Path) -> dict[str, Any]:
    """What a store holds after a sweep, without what may differ between two: times, and how often was tried."""
    store = Store(root)
    records = {
        record["key"]: {name: value for name, value in record.items() if name not in CHANGES}
        for record in store.records()
    }
    weights = {path.parent.name: path.read_bytes() for path in sorted(root.glob("victims/*/network.safetensors"))}
    return {"records": records, "weights": weights}


def litter(root: Path, places: Iterable[str] = ("tmp", "locks")) -> list[Path]:
    """What should not lie about when nobody works."""
    found = [path for place in places for path in (root / place).glob("*")]
    return found + [path for path in root.glob("runs/*/*") if not path.name.endswith(".json")]
