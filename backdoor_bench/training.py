"""One way to train anything: a Lightning fit over batches on the device, with nothing around it that costs."""

from __future__ import annotations

import inspect
import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from backdoor_bench import progress
from backdoor_bench.errors import DivergedError, IncompatibleError, require_whole
from backdoor_bench.numerics import Numerics

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[..., LRScheduler | dict[str, Any]]

LOSS = "mean training loss"
"""What a schedule that waits for a plateau is told of each epoch."""

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained from scratch.

    Args:
        epochs: passes over the training set.
        batch_size: images per step.
        optimizer: makes the optimiser of the parameters.
        scheduler: makes the learning rate's schedule of the optimiser, or None; see :func:`optimisers`.
        drop_last: leave out a trailing partial batch.
    """

    epochs: int
    batch_size: int
    optimizer: MakeOptimizer
    scheduler: MakeScheduler | None = None
    drop_last: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            object.__setattr__(self, name, require_whole(f"recipe.{name}", getattr(self, name), 1))

    def describe(self) -> dict[str, Any]:
        """What determines a training by it, as plain values, for a key.

        Raises:
            TypeError: a part is made of something without a name; use classes, functions of a module, and ``partial``.
        """
        return {item.name: _described(getattr(self, item.name)) for item in fields(self)}


def _described(value: Any) -> Any:
    if isinstance(value, partial):
        given = {name: _described(item) for name, item in value.keywords.items()}
        return {"_target_": _described(value.func), "_args_": _described(value.args), **given}
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '<object>')}"
    if "<" in name:
        raise TypeError(
            f"{value!r} of a recipe has no name to be known by; use a class, a function or a partial of one"
        )
    return name


@dataclass
class History:
    """What a fit left: the mean loss of each epoch, and its seconds."""

    loss: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Watch(Callback):
    """Adds up the loss on the device, looks at it once an epoch, stops a fit that diverged, shows progress."""

    def __init__(self, title: str, history: History, advance: progress.Advance) -> None:
        self.title, self.history, self.advance = title, history, advance
        self.total: Tensor | None = None
        self.steps = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.total, self.steps = None, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        loss = loss.detach().float()
        self.total = loss.clone() if self.total is None else self.total.add_(loss)
        self.steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.total is None:  # a step that optimises by hand need not give its loss
            return self.advance("")
        mean = float(self.total) / self.steps
        self.history.loss.append(mean)
        if any(schedule.reduce_on_plateau for schedule in trainer.lr_scheduler_configs):
            pl_module.log(LOSS, mean)  # Lightning gives it to the schedule as soon as this returns
        if not math.isfinite(mean):
            raise DivergedError(
                f"{self.title} diverged: the loss is {mean} in epoch {trainer.current_epoch + 1}; "
                "a smaller learning rate may help"
            )
        self.advance(f"loss {mean:.4f}")


def fit(
    module: LightningModule,
    batches: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
    numerics: Numerics,
    title: str,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train ``module`` over ``batches`` (sized, on the device) and leave it on the device.

    The Trainer has no logger, no checkpoint and no validation: what measures a network stands outside.

    Raises:
        DivergedError: the mean loss of an epoch, or a parameter at the end, is not finite.
        KeyboardInterrupt: as it came.
    """
    history = History()
    started = time.perf_counter()
    if epochs < 1:
        return history
    with progress.track(title, epochs) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and workers does not apply here
        trainer = Trainer(
            accelerator="gpu" if numerics.device.type == "cuda" else "cpu",
            devices=[numerics.device.index or 0] if numerics.device.type == "cuda" else 1,
            precision=numerics.precision,
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Watch(title, history, advance), *callbacks],
            # One process, one device, whatever a job scheduler's variables say.
            plugins=[LightningEnvironment()],
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, train_dataloaders=batches)
        except SystemExit as stop:
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            # Lightning turns Ctrl-C into an exit, and makes the process deaf to the next one.
            signal.signal(signal.SIGINT, on_interrupt or signal.default_int_handler)
            raise KeyboardInterrupt from None
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise IncompatibleError(
                f"{title}: BatchNorm over maps of 1x1 needs at least two images in a batch; use a larger batch_size"
            ) from error
        finally:
            release(trainer, module)
    numerics.place(module)
    require_finite(module, title)
    history.seconds = time.perf_counter() - started
    return history


def release(trainer: Trainer, module: LightningModule) -> None:
    """Free what a Trainer holds: its parts refer to each other through it, and garbage is collected by count, not size.

    Without this a network and its optimiser's state outlive their fit, in a device's memory, too.
    """
    vars(trainer).clear()
    module.trainer = None


def optimisers(
    module: LightningModule,
    parameters: Iterable[nn.Parameter],
    optimizer: MakeOptimizer,
    scheduler: MakeScheduler | None,
) -> Any:
    """What ``configure_optimizers`` returns for one optimiser and an optional schedule.

    A schedule whose constructor takes ``total_steps`` (OneCycleLR) is given it and moves by step, and so does one in
    :func:`by_step`; others by epoch; ReduceLROnPlateau by the mean training loss of the epoch.
    """
    made = optimizer(parameters)
    if scheduler is None:
        return made
    if "total_steps" not in inspect.signature(scheduler).parameters:
        schedule = scheduler(made)
        if isinstance(schedule, dict):
            return {"optimizer": made, "lr_scheduler": schedule}
        if isinstance(schedule, ReduceLROnPlateau):
            return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "monitor": LOSS}}
        return {"optimizer": made, "lr_scheduler": schedule}
    total = int(module.trainer.estimated_stepping_batches)
    return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler(made, total_steps=total), "interval": "step"}}


def by_step(optimizer: Optimizer, scheduler: Callable[[Optimizer], LRScheduler]) -> dict[str, Any]:
    """A schedule that moves by step where it would move by epoch; in YAML around it, with ``_partial_: true``."""
    return {"scheduler": scheduler(optimizer), "interval": "step"}


def require_finite(network: nn.Module, title: str) -> None:
    """Raise :class:`DivergedError` if a weight or buffer is NaN or infinite."""
    tensors = [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]
    if tensors and not bool(torch.stack([t.detach().float().sum().isfinite() for t in tensors]).all()):
        raise DivergedError(f"{title} diverged: a weight is not finite; a smaller learning rate may help")
