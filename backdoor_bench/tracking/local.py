"""Lightning's own loggers: csv and tensorboard, a folder per run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor
from torchvision.utils import save_image

from backdoor_bench import config as configuration
from backdoor_bench.tracking import picture
from backdoor_bench.tracking.wandb_content import MEMORY, METRICS

if TYPE_CHECKING:
    from backdoor_bench.bench import Plan


def make_logger(plan: Plan) -> Logger:
    logger = configuration.make({**plan.config["logger"], "version": None, "name": plan.key})
    assert isinstance(logger, Logger)
    return logger


def log(logger: Logger, plan: Plan, record: Mapping[str, Any], shown: Tensor | None) -> None:
    """Step 0 is the victim, then one per stage; the last step has ``final_*``. The picture where the logger has one.

    TensorBoard gets the counts of triggered test images by predicted class as one scalar per class, at step 0 (before)
    and 1 (after); the csv logger gets them as a file beside its metrics.
    """
    logger.log_hyperparams({**plan.config, "run": plan.key, "victim": plan.victim_key})
    logger.log_metrics(_numbers({"stage_seconds": record["victim_seconds"], **_measured(record["before"])}), step=0)
    for step, stage in enumerate(record["stages"], start=1):
        logger.log_metrics(_numbers({"stage_seconds": stage["seconds"], **_measured(stage)}), step=step)
    last = len(record["stages"]) + 1
    final = {name if name in MEMORY else f"final_{name}": value for name, value in _measured(record).items()}
    logger.log_metrics(_numbers(final), step=last)
    if isinstance(logger, TensorBoardLogger):
        for step, when in enumerate(("before", "after")):
            for label, count in (record.get("triggered_as", {}).get(when) or {}).items():
                logger.experiment.add_scalar(f"triggered_as/class_{label}", count, step)
        if shown is not None:
            logger.experiment.add_image(picture.TITLE, shown)
    elif isinstance(logger, CSVLogger):
        logger.save()
        folder = Path(logger.log_dir)
        if "triggered_as" in record:
            (folder / "triggered_as.csv").write_text(_triggered_as(record["triggered_as"]))
        if shown is not None:
            save_image(shown, folder / "trigger.png")
    logger.finalize("success")


def _triggered_as(counts: Mapping[str, Mapping[str, int] | None]) -> str:
    before, after = counts["before"], counts["after"] or {}
    labels = sorted({*(before or {}), *after}, key=int)
    rows = [f"{label},{'' if before is None else before.get(label, 0)},{after.get(label, 0)}" for label in labels]
    return "\n".join(["class,before,after", *rows]) + "\n"


def _measured(state: Mapping[str, Any]) -> dict[str, Any]:
    """Of the victim, a stage or the run: the metrics that it has, what the attack measures besides, memory."""
    return {name: state[name] for name in (*METRICS, *MEMORY) if name in state} | state.get("extra", {})


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Without what could not be measured: these loggers have no null."""
    return {name: float(value) for name, value in values.items() if value is not None}
