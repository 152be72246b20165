"""Which runs of a sweep wait to be sent to W&B: a marker file for each, so that nothing is lost with a process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

FOLDER = "pending"


def in_sweep(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of one of many runs: its logger knows that more of its victim are to come."""
    if "per" not in config["logger"]:
        return config
    return {**config, "logger": {**config["logger"], "sweep": True}}


def of_a_sweep(config: Mapping[str, Any]) -> bool:
    """Whether a run is one of many: told by the engine's worker, or by Hydra in this process."""
    multirun = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return bool(config["logger"].get("sweep")) or multirun


def note(folder: Path, key: str, victim: str) -> None:
    """A run that is measured; its record is about to be written. An empty file, so none is ever half there."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / FOLDER / f"{victim}.{key}").touch()


def victims(folder: Path) -> dict[str, list[Path]]:
    """The victims that have new runs, with the markers to remove when they are sent."""
    found: dict[str, list[Path]] = {}
    for path in sorted((folder / FOLDER).glob("*.*")):
        if re.fullmatch(r"[\w-]+\.[\w-]+", path.name):
            found.setdefault(path.stem, []).append(path)
    return found
