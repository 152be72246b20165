"""The command: ``python -m backdoor_bench +attack=badnet +defense=unibp``, or many of them with ``-m``."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from backdoor_bench import config as configuration
from backdoor_bench import overrides, progress
from backdoor_bench.errors import BenchError

JOB = "job.json"


@cache
def _bench(store_dir: str) -> Any:
    """One warm Bench per store and process, so that jobs share victims, data and triggered sets."""
    from backdoor_bench.bench import Bench
    from backdoor_bench.store import Store

    return Bench(Store(store_dir))


def job(config: DictConfig) -> None:
    """One job of Hydra's: run, print, leave its outcome for the end of a multirun; never raise into Hydra."""
    from backdoor_bench import experiment, table

    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    name = HydraConfig.get().job.override_dirname if multirun else ""
    if multirun:
        progress.say(f"job {HydraConfig.get().job.num}: {name.replace(',', ' ')}")
    started = time.monotonic()
    outcome: dict[str, Any] = {"name": name.replace(",", " "), "status": "ok"}
    try:
        OmegaConf.resolve(config)
        done = experiment.run(configuration.plain(config), _bench(str(config.store_dir)))
        table.print_run(done.record, done.path)
        outcome |= {"record": dict(done.record), "found": done.found}
    except Exception as error:
        reason = explain(error)
        outcome |= {"status": "failed", "reason": reason}
    outcome["seconds"] = time.monotonic() - started
    _outcomes.append(outcome)
    if multirun:
        folder = Path(HydraConfig.get().runtime.output_dir)
        outcome["record"] = (outcome.get("record") or {}).get("key")
        (folder / JOB).write_text(json.dumps(outcome | {"num": HydraConfig.get().job.num}))


_outcomes: list[dict[str, Any]] = []


def explain(error: Exception) -> str:
    """Say what went wrong in one message; the stack trace only for what is not the user's, or if asked for."""
    expected = isinstance(error, BenchError)
    reason = str(error) if expected else f"{type(error).__name__}: {error}"
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    progress.say(f"error: {reason}")
    if not expected and os.environ.get("HYDRA_FULL_ERROR") != "1":
        progress.say("HYDRA_FULL_ERROR=1 shows where")
    return reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 if a run failed."""
    from backdoor_bench import table

    _outcomes.clear()
    given = list(sys.argv[1:] if arguments is None else arguments)
    conf = configuration.directory()
    try:
        ready = overrides.prepare(given, conf)
    except BenchError as error:
        explain(error)
        return 1
    command = hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(job)
    before, sys.argv = sys.argv, [sys.argv[0], *ready]
    try:
        command()
    finally:
        sys.argv = before
    if "-m" in ready or "--multirun" in ready:
        table.print_jobs(_outcomes)
    return int(any(outcome["status"] != "ok" for outcome in _outcomes))


if __name__ == "__main__":
    sys.exit(main())
