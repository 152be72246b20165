"""Metrics, configuration and a trigger picture to a Lightning logger (csv, tensorboard, wandb). After the measuring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torchvision.utils import make_grid, save_image

from backdoor_bench import config as configuration
from backdoor_bench.dataset import Data
from backdoor_bench.errors import ConfigError

if TYPE_CHECKING:
    from backdoor_bench.bench import Plan, Victim

METRICS = ("acc", "asr", "ra", "der", "arr", "rdr")
PICTURES = 8
RESIDUAL_GAIN = 5


def track(plan: Plan, measured: Mapping[str, Any], data: Data, victim: Victim) -> None:
    """Send a run to the configured logger; ``logger=none`` sends nothing."""
    if plan.config["logger"].get("_target_") is None:
        return
    logger = make_logger(plan)
    logger.log_hyperparams({**plan.config, "run": plan.key, "victim": plan.victim_key})
    logger.log_metrics(_numbers({"stage_seconds": measured["victim_seconds"], **measured["before"]}), step=0)
    for step, stage in enumerate(measured["stages"], start=1):
        numbers = {name: stage[name] for name in METRICS if name in stage}
        logger.log_metrics(_numbers({"stage_seconds": stage["seconds"], **numbers}), step=step)
    last = len(measured["stages"]) + 1
    logger.log_metrics(_numbers({f"final_{name}": measured[name] for name in METRICS}), step=last)
    if victim.trigger is not None:
        show(logger, trigger_picture(data.test.images[:PICTURES], victim, plan))
    logger.finalize("success")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def make_logger(plan: Plan) -> Logger:
    try:
        logger = configuration.make({**plan.config["logger"], "version": None} | _identity(plan))
    except ModuleNotFoundError as error:
        raise ConfigError(f"this logger needs the package {error.name}; install it or use logger=csv") from error
    assert isinstance(logger, Logger)
    return logger


def trigger_picture(stored: Tensor, victim: Victim, plan: Plan) -> Tensor:
    """(3, H, W) in [0, 1]: rows of clean images, the same triggered, and the residual times five around grey."""
    assert victim.trigger is not None
    clean = plan.numerics.images(stored)
    with torch.inference_mode():
        triggered = victim.trigger(clean)
    residual = ((triggered - clean) * RESIDUAL_GAIN + 0.5).clamp(0, 1)
    return make_grid(torch.cat([clean, triggered, residual]), nrow=len(clean)).cpu()


def show(logger: Logger, picture: Tensor) -> None:
    """The picture, in the way of each logger; as a file where a logger has no pictures."""
    if isinstance(logger, WandbLogger):
        logger.log_image("trigger (clean | triggered | residual x5)", [picture])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image("trigger (clean, triggered, residual x5)", picture)
    elif isinstance(logger, CSVLogger):
        logger.save()
        save_image(picture, Path(logger.log_dir) / "trigger.png")


def _identity(plan: Plan) -> dict[str, Any]:
    """How the loggers name a run, so that it is found again by its key."""
    if plan.config["logger"]["_target_"].endswith("WandbLogger"):
        group = plan.attack or "clean"
        return {"name": plan.key, "group": group, "tags": [plan.config["dataset"]["name"], str(plan.architecture)]}
    return {"name": plan.key}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Without what could not be measured: a logger has no null."""
    return {name: float(value) for name, value in values.items() if value is not None}
