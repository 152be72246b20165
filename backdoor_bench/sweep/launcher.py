"""``hydra/launcher=ray``: the jobs of a plain multirun, composed by Hydra and handed to the engine.

This module is imported whenever Hydra looks for plugins, so whatever is heavy is imported where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from backdoor_bench.errors import BenchError, ConfigError

if TYPE_CHECKING:
    from backdoor_bench.sweep.job import Job, Result

outcomes: list[dict[str, Any]] = []
"""What became of the jobs of this process, as the command's table has them: Hydra hands nothing back to its caller."""

statuses: list[int] = []
"""How the multiruns of this process ended, as exit statuses: a job that was skipped does not tell why."""

JOB = "job.json"


class RayLauncher(Launcher):
    """See ``conf/hydra/launcher/ray.yaml`` for the arguments."""

    def __init__(self, init: Mapping[str, Any], workers: int | None = None, gpus_per_worker: float = 1.0) -> None:
        unexpected = set(init) - {"address"}
        if unexpected:
            raise ConfigError(f"hydra.launcher.init has only 'address', not {', '.join(sorted(unexpected))}")
        self._resources: dict[str, Any] = {
            "address": init.get("address"),
            "workers": workers,
            "gpus_per_worker": gpus_per_worker,
        }
        self._context: HydraContext | None = None
        self._config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose and plan every job here, run them by the engine, note what became of each."""
        from backdoor_bench.bench import Bench
        from backdoor_bench.store import Store
        from backdoor_bench.sweep import engine, sweeper

        assert self._config is not None
        started = [self._begin(initial_job_idx + n, overrides) for n, overrides in enumerate(job_overrides)]
        bench = Bench(Store(self._config.store_dir))
        jobs: dict[str, Job] = {}
        waiting: dict[str, list[_Run]] = {}
        for run in started:
            try:
                job = self._plan(run, bench)
            except BenchError as error:
                run.outcome |= {"status": "failed", "reason": str(error)}
                continue
            jobs.setdefault(job.key, job)
            waiting.setdefault(job.key, []).append(run)

        def note(job: Job, result: Result) -> None:
            for run in waiting[job.key]:
                run.end(result)

        try:
            summary = engine.run(
                jobs.values(), bench.store, name="multirun", on_result=note,
                resume_command=sweeper.command(self._config.hydra), **self._resources,
            )  # fmt: skip
            statuses.append(summary.exit_status)
        except BenchError as error:  # no worker, no store: nothing was run
            for run in started:
                if run.outcome["status"] == "skipped":
                    run.outcome["reason"] = str(error)
        outcomes.extend(run.outcome for run in started)
        return [run.close() for run in started]

    def _begin(self, number: int, overrides: Sequence[str]) -> _Run:
        assert self._context is not None
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))  # type: ignore[arg-type]
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return _Run(config, list(overrides), " ".join(filter_overrides(overrides)))

    def _plan(self, run: _Run, bench: Any) -> Job:
        from backdoor_bench import config as configuration
        from backdoor_bench.sweep.job import Job

        own = OmegaConf.masked_copy(run.config, [str(name) for name in run.config if name != "hydra"])
        planned = bench.plan(configuration.plain(own))
        return Job(planned.key, planned.victim_key, planned.config, run.outcome["name"])


class _Run:
    """A job as Hydra knows it."""

    def __init__(self, config: DictConfig, overrides: Sequence[str], name: str) -> None:
        self.config = config
        self._overrides = overrides
        self.outcome: dict[str, Any] = {
            "name": name, "status": "skipped", "reason": None, "found": False, "record": None, "seconds": 0.0,
            "multirun": str(config.hydra.sweep.dir),
        }  # fmt: skip

    def end(self, result: Result) -> None:
        found = result.status == "found"
        self.outcome |= {
            "status": "ok" if found else result.status, "reason": result.reason, "found": found,
            "record": result.record, "seconds": result.seconds,
        }  # fmt: skip

    def close(self) -> JobReturn:
        """Leave the outcome in the job's folder, as Hydra's own launcher would."""
        folder = Path(str(self.config.hydra.sweep.dir)) / str(self.config.hydra.sweep.subdir)
        folder.mkdir(parents=True, exist_ok=True)
        key = self.outcome["record"]["key"] if self.outcome["record"] else None
        (folder / JOB).write_text(json.dumps(self.outcome | {"record": key}, indent=1))
        done = JobReturn(self._overrides, self.config, working_dir=str(folder))
        # Whatever became of it is in the table and the exit status; FAILED would have Hydra raise it here again.
        done.status, done.return_value = JobStatus.COMPLETED, self.outcome
        return done
