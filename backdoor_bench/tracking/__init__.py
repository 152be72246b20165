"""Metrics, configuration and pictures to a logger: csv, tensorboard or wandb. After the measuring, never its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backdoor_bench import config as configuration
from backdoor_bench import progress
from backdoor_bench.dataset import Data
from backdoor_bench.errors import root_cause
from backdoor_bench.tracking import pending

if TYPE_CHECKING:
    from backdoor_bench.bench import Plan, Victim

Record = Mapping[str, Any]


def track(plan: Plan, record: Record, data: Data, victim: Victim) -> None:
    """Send a run to the configured logger; ``logger=none`` sends nothing.

    Args:
        plan: the run.
        record: what its record says, as far as it is known when everything is measured.
        data: whose first test images are shown.
        victim: whose trigger is shown.

    A logger that fails (no disk, no package, no account) is said and costs nothing but what it would have shown: the
    run is measured, and ``report wandb --upload`` sends it from its record.
    """
    if plan.config["logger"].get("_target_") is None:
        return
    try:
        _track(plan, record, data, victim)
    except Exception as error:
        cause, name = root_cause(error), str(plan.config["logger"]["_target_"]).rpartition(".")[2]
        reason = str(error)
        if isinstance(cause, ModuleNotFoundError):  # TensorBoardLogger's names no package
            package = cause.name or name.lower().removesuffix("logger")
            reason = f"it needs {package}: pip install {package}"
        progress.say(f"{name}: this run was not logged, its record is whole: {reason}")


def _track(plan: Plan, record: Record, data: Data, victim: Victim) -> None:
    from backdoor_bench.tracking import local, picture, wandb_content
    from backdoor_bench.tracking.wandb_runs import WandbRuns

    if "per" not in plan.config["logger"]:
        logger = local.make_logger(plan)
        shown = None if victim.trigger is None else picture.of_trigger(data.test.images, victim.trigger, plan.numerics)
        local.log(logger, plan, record, shown)
        progress.say(f"logged: {logger.log_dir}")
        return
    runs = configuration.make({key: value for key, value in plan.config["logger"].items() if key != "sweep"})
    assert isinstance(runs, WandbRuns)
    if victim.trigger is not None:
        picture.keep(runs.picture(plan.victim_key), data.test.images, victim.trigger, plan.numerics)
    if runs.per == "victim" and pending.of_a_sweep(plan.config):
        pending.note(runs.folder, plan.key, plan.victim_key)
    else:
        runs.send(wandb_content.of_run({**record, "status": "ok"}))


__all__ = ["track"]
