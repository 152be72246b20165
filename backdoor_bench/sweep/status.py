"""How a sweep stands: written into the store by whoever drives it, readable from every machine that sees the store."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from backdoor_bench.store import files

FOLDER = "sweeps"
SECONDS_BETWEEN_BEATS = 2.0
STALE_SECONDS = 30.0
"""Without a heartbeat for so long, its driver is taken to be dead (clocks of machines differ by less)."""

KEPT = 20


@dataclass
class State:
    """A sweep at one moment. Times are seconds since 1970.

    Args:
        workers: by name, the label of what it does and since when; None if it waits.
        eta: when it is expected to end as far as known, or None.
        unknown: how many runs that leaves out, because nothing like them has ended yet.
        last: what the last runs came to, the newest last: label, seconds, doubtful, and fractions as records name them.
        failures: (label, reason) of the last failures.
        command: what to type to go on, once it has ended.
    """

    name: str
    total: int
    id: str = ""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    started: float = field(default_factory=time.time)
    heartbeat: float = field(default_factory=time.time)
    phase: str = "starting"
    counts: dict[str, int] = field(default_factory=dict)
    weak: int = 0
    at_chance: int = 0
    workers: dict[str, tuple[str, float] | None] = field(default_factory=dict)
    eta: float | None = None
    unknown: int = 0
    last: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    command: str | None = None

    def __post_init__(self) -> None:
        if not self.id:
            moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime(self.started))
            self.id = f"{moment}_{''.join(c if c.isalnum() else '-' for c in self.name)}_{uuid.uuid4().hex[:4]}"

    @property
    def done(self) -> int:
        return sum(self.counts.values())

    @property
    def stale(self) -> bool:
        """Whether nobody drives it any more although it did not end."""
        return self.phase != "ended" and time.time() - self.heartbeat > STALE_SECONDS

    def write(self, root: Path) -> None:
        """Replace its file in the store; a reader never sees half of one.

        Raises:
            UnwritableError: the store takes nothing.
        """
        path = root / FOLDER / f"{self.id}.json"
        temporary = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(self), indent=1))
            temporary.replace(path)
        except OSError as error:
            raise files.cannot_write(path, error) from error


def read(root: Path) -> list[State]:
    """The sweeps of a store, the oldest first. What cannot be read, or is a newer version's, is left out."""
    found = []
    for path in sorted((root / FOLDER).glob("[!.]*.json")):
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            names = {item.name for item in fields(State)}
            found.append(State(**{name: value for name, value in values.items() if name in names}))
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return found


def forget_old(root: Path) -> None:
    """Keep the newest states that have ended, and no half-written one of a driver that was killed."""
    for path in (root / FOLDER).glob(".*.json"):
        with suppress(OSError):  # replaced or removed by another sweep meanwhile
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
    for state in [state for state in read(root) if state.phase == "ended" or state.stale][:-KEPT]:
        for suffix in (".json", ".failed"):
            (root / FOLDER / f"{state.id}{suffix}").unlink(missing_ok=True)
