"""What a store knows of the past: which runs are done, and how long runs of a kind took."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from backdoor_bench.errors import ConfigError, StoreError
from backdoor_bench.store import Store

Kind = tuple[Any, ...]
State = Literal["done", "failed"]

TIME_LIMIT = "sweep.time_limit"
UNITS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass
class Past:
    """The records of a store, read once.

    Attributes:
        states: of each run that has a record: ``done`` if one is ``ok``, else ``failed``.
        unreadable: what the store said of records of runs that nobody asked about, by run.
    """

    states: dict[str, State] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    _seconds: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))
    _medians: dict[Kind, float] = field(default_factory=dict)

    @classmethod
    def read(cls, store: Store, asked: Iterable[str] = ()) -> Past:
        """Every record of the store.

        Args:
            store: it may be empty, or not there yet.
            asked: keys of the runs that matter.

        Raises:
            StoreError: a record of one of those was written by a newer version.
        """
        past, asked = cls(), set(asked)
        for key in _names(store.root / "runs"):
            try:
                attempts = store.attempts(key)
            except StoreError as error:
                if key in asked:
                    raise
                past.unreadable[key] = str(error)
                continue
            done = [record for record in attempts if record.get("status") == "ok"]
            if attempts:
                past.states[key] = "done" if done else "failed"
            for record in done[-1:]:
                past._learn(record)
        return past

    def seconds(self, config: Mapping[str, Any], architecture: str, attack: str | None, device: str) -> float | None:
        """Expected seconds of a run whose victim is there, or, without a defense, of training the victim.

        The median over runs of the nearest kind that there are any of; None if there are none.
        """
        for kind in kinds(config, architecture, attack, device):
            if kind in self._seconds:
                if kind not in self._medians:
                    self._medians[kind] = median(self._seconds[kind])
                return self._medians[kind]
        return None

    def _learn(self, record: Mapping[str, Any]) -> None:
        try:
            config, device = record["config"], record["numerics"]["device"]
            trained = record["victim_was"] == "trained"
            if config.get("defense") is None:
                # Victims of earlier days say how long their fit took, without the trigger that their attack learned.
                seconds = float(record["seconds"] if trained else record["victim_seconds"])
            elif trained:
                seconds = sum(float(stage["seconds"]) for stage in record["stages"])
            else:
                seconds = float(record["seconds"])
            for kind in kinds(config, record["architecture"], record["attack"], device):
                self._seconds[kind].append(seconds)
        except (KeyError, TypeError, ValueError):
            return  # of an earlier form, or somebody's own: it teaches nothing


def kinds(config: Mapping[str, Any], architecture: str, attack: str | None, device: str) -> list[Kind]:
    """What a run's seconds depend on, from the nearest to the widest."""
    base = (config["dataset"]["name"], architecture, config["model"].get("width"), device)
    defense = config.get("defense")
    if defense is None:
        length = (config["recipe"]["epochs"], config["recipe"]["batch_size"])
        return [("victim", *base, *length, attack, config["preset"]["name"]), ("victim", *base, *length)]
    how = ("defense", *base, defense["name"], defense.get("epochs"), config["preset"]["name"])
    regime = (config["spc"], config["clean_ratio"])
    return [(*how, *regime), how]


def seconds_of(duration: str | float | None, option: str) -> float | None:
    """``sweep.budget`` or ``sweep.time_limit``: ``25min``, ``2h``, ``1.5h``, ``90s``, ``1d`` in seconds; None for none.

    Raises:
        ConfigError: it is no duration.
    """
    if duration is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|h|d)\s*", str(duration))
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"{option}={duration}: expected a duration with its unit, e.g. 25min or 2h")
    return float(found[1]) * UNITS[found[2]]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except FileNotFoundError:
        return []
