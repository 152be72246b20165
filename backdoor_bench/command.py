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

from backdoor_bench import composing, overrides, progress
from backdoor_bench import config as configuration
from backdoor_bench.errors import BenchError, ConfigError
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
    if hydra_config.job.chdir:
        os.chdir(hydra_config.runtime.cwd)  # where the command was typed: its paths are relative to that
    if hydra_config.mode != RunMode.MULTIRUN:
        single(config)
        return
    varied = [item for item in hydra_config.overrides.task if overrides.name_of(item) not in _constants]
    name = " ".join(varied)
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
        done = experiment.run(configuration.plain(config), _bench(Store(config.store_dir).root))
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


# One process, one command: what its jobs came to, and the names of the options that all of them share.
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


def _check_options(ready: Sequence[str], conf: Path, sweeps: Path) -> None:
    """Refuse a misspelt option, which Hydra would advise to add, and a multirun whose folder cannot be made.

    Raises:
        ConfigError: a misspelt option, in the first job or in what all have.
        UnwritableError: nothing can be written there; of a sweep, the engine says so.
    """
    options = composing.shared(ready, sweeps)
    flags = {argument for argument in ready if argument.startswith("-")}
    multirun = bool(flags) and flags <= {"-m", "--multirun"}
    if multirun and not options:
        options = [argument for argument in ready if argument.lstrip("+").startswith("store_dir=")]
    config = composing.compose_run(options, conf) if options or multirun else None
    if config is not None and multirun:
        Store(config.store_dir).check_writable()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 if a run failed, or 130 after an interruption of a sweep."""
    from backdoor_bench import table

    given = list(sys.argv[1:] if arguments is None else arguments)
    _outcomes.clear()
    _constants.clear()
    _constants.update(overrides.constants(given))
    conf, sweeps = configuration.directory(), configuration.directory("multirun_sweeps")
    try:
        ready = overrides.prepare(given, conf, sweeps)
        config = composing.compose_run(ready, conf) if composing.is_plain(ready) else None
    except BenchError as error:
        explain(error)
        return 1
    if config is not None:  # the common case: Hydra's own main would compose it again, and make a folder for its output
        single(config)
        return int(_outcomes[-1]["status"] != "ok")
    try:
        _check_options(ready, conf, sweeps)
    except BenchError as error:
        explain(error)
        return 1
    if not any(argument.startswith("hydra.searchpath=") for argument in ready):
        ready.insert(0, f"hydra.searchpath=[file://{sweeps}]")
    command = hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(job)
    before, sys.argv = sys.argv, [sys.argv[0], *overrides.flags_last(ready)]
    sweeper.outcomes.clear()
    sweeper.typed[:] = given
    launcher.outcomes.clear()
    launcher.statuses.clear()
    try:
        command()
    except ValueError as error:  # flags that exclude each other, refused before Hydra's own handler is there
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        explain(ConfigError(str(error)))
        return 1
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
