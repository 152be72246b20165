"""What the command does: one run, or many of them with ``-m``, or a sweep by name."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from backdoor_bench import config as configuration
from backdoor_bench import overrides, progress
from backdoor_bench.errors import BenchError
from backdoor_bench.store import Store
from backdoor_bench.sweep import launcher, sweeper

JOB = "job.json"


@cache
def _bench(store_dir: Path) -> Any:
    """One warm Bench per store (an absolute path) and process, so that jobs share victims, data and triggered sets."""
    from backdoor_bench.bench import Bench
    from backdoor_bench.store import Store

    return Bench(Store(store_dir))


def job(config: DictConfig) -> None:
    """One job of Hydra's, of which there are many or one."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        single(config)
        return
    name = " ".join(override for override in hydra_config.overrides.task if override not in _constants)
    progress.say(f"job {hydra_config.job.num}: {name}")
    outcome = _run(config, name, lambda table, done: progress.say(f"  {table.line(done.record)}"))
    outcome["multirun"] = hydra_config.sweep.dir
    _note(Path(hydra_config.runtime.output_dir), outcome)


def single(config: DictConfig) -> None:
    """The only run of a command."""
    _run(config, "", lambda table, done: table.print_run(done.record, done.path))


def _run(config: DictConfig, name: str, show: Callable[[Any, Any], None]) -> dict[str, Any]:
    """Run, show what came of it, note the outcome; never raise into Hydra, which would stop the other jobs.

    Args:
        show: of the module of tables and the run's :class:`experiment.Outcome`.
    """
    from backdoor_bench import experiment, table

    started = time.monotonic()
    outcome: dict[str, Any] = {"name": name, "status": "ok", "reason": None, "found": False, "record": None}
    try:
        done = experiment.run(configuration.plain(config), _bench(Path(config.store_dir).resolve()))
        outcome |= {"record": done.record, "found": done.found}
        show(table, done)
    except Exception as error:
        outcome |= {"status": "failed", "reason": explain(error)}
    outcome["seconds"] = time.monotonic() - started
    _outcomes.append(outcome)
    return outcome


def _note(folder: Path, outcome: dict[str, Any]) -> None:
    """What became of a job, in the folder that Hydra made for it."""
    key = outcome["record"]["key"] if outcome["record"] else None
    (folder / JOB).write_text(json.dumps(outcome | {"record": key}, indent=1))


# One process, one command: what its jobs came to, and the overrides that all of them share.
_outcomes: list[dict[str, Any]] = []
_constants: set[str] = set()


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


def _check_multirun(ready: Sequence[str], conf: Path) -> None:
    """Refuse a multirun with a misspelt option or a folder that cannot be made; of a sweep, the engine says so.

    Raises:
        ConfigError: a misspelt option in the first job, for which Hydra would refuse all of them.
        UnwritableError: nothing can be written there.
    """
    flags = {argument for argument in ready if argument.startswith("-")}
    if not flags or not flags <= {"-m", "--multirun"}:
        return
    place = [argument for argument in ready if argument.lstrip("+").startswith("store_dir=")]
    config = overrides.compose_run(overrides.first_job(ready) or place, conf)
    if config is not None:
        Store(config.store_dir).check_writable()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 if a run failed, or 130 after an interruption of a sweep."""
    from backdoor_bench import table

    given = list(sys.argv[1:] if arguments is None else arguments)
    _outcomes.clear()
    _constants.clear()
    _constants.update(given)
    conf, sweeps = configuration.directory(), configuration.directory("multirun_sweeps")
    try:
        ready = overrides.prepare(given, conf, sweeps)
        config = overrides.compose_run(ready, conf) if overrides.is_plain(ready) else None
    except BenchError as error:
        explain(error)
        return 1
    if config is not None:  # the common case: Hydra's own main would compose it again, and make a folder for its output
        single(config)
        return int(_outcomes[-1]["status"] != "ok")
    try:
        _check_multirun(ready, conf)
    except BenchError as error:
        explain(error)
        return 1
    if not any(argument.startswith("hydra.searchpath=") for argument in ready):
        # Beside the other overrides: argparse takes them in one group only.
        first = next((n for n, argument in enumerate(ready) if "=" in argument and not argument.startswith("-")), 0)
        ready.insert(first, f"hydra.searchpath=[file://{sweeps}]")
    command = hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(job)
    before, sys.argv = sys.argv, [sys.argv[0], *ready]
    sweeper.outcomes.clear()
    sweeper.typed[:] = given
    launcher.outcomes.clear()
    launcher.statuses.clear()
    try:
        command()
    finally:
        sys.argv = before
    _outcomes.extend(launcher.outcomes)
    if any("multirun" in outcome for outcome in _outcomes):
        table.print_jobs(_outcomes)
    failed = any(outcome["status"] != "ok" for outcome in _outcomes)
    for outcome in sweeper.outcomes:
        if isinstance(outcome, Exception):
            explain(outcome)
    swept = [1 if isinstance(outcome, Exception) else outcome for outcome in sweeper.outcomes]
    return max([int(failed), *launcher.statuses, *swept])
