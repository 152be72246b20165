"""A fit ends with finite weights on the device, or with an error that says where it went wrong."""

from __future__ import annotations

import gc
import signal
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from backdoor_bench import training
from backdoor_bench.dataset import Batches, ImageSet
from backdoor_bench.errors import ConfigError, DivergedError
from backdoor_bench.numerics import Numerics

CPU = Numerics(torch.device("cpu"))


class Line(LightningModule):
    """y = weight * 0 + bias, pulled towards the labels by squared error; ``act`` is told the step and may intervene."""

    def __init__(self, act: Any = None, scheduler: Any = None, lr: float = 0.5) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.act, self.scheduler, self.lr, self.rates = act, scheduler, lr, []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        labels = batch[1].float()
        loss = (self.layer(labels.new_zeros(len(labels), 1))[:, 0] - labels).square().mean()
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return loss if self.act is None else self.act(self.global_step, loss)

    def configure_optimizers(self) -> Any:
        return training.optimisers(self, self.parameters(), partial(torch.optim.SGD, lr=self.lr), self.scheduler)


def ones(count: int, batch_size: int) -> Batches:
    return Batches(ImageSet(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.ones(count).long()), batch_size)


def test_a_fit_by_hand() -> None:
    line = Line(lr=0.25)
    history = training.fit(line, ones(4, 2), 2, CPU, "line")
    # The bias halves its distance to 1 in each of four steps; the loss is the distance squared.
    assert line.layer.bias.item() == pytest.approx(1 - 1 / 16)
    assert history.loss == pytest.approx([(1 + 1 / 4) / 2, (1 / 16 + 1 / 64) / 2])
    assert history.seconds > 0


def test_a_recipe_is_described_by_plain_values() -> None:
    schedule = partial(training.by_step, scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2))
    recipe = training.Recipe(3, 8, partial(torch.optim.SGD, lr=0.5), schedule)
    assert recipe.describe() == {
        "epochs": 3,
        "batch_size": 8,
        "optimizer": {"_target_": "torch.optim.sgd.SGD", "_args_": [], "lr": 0.5},
        "scheduler": {
            "_target_": "backdoor_bench.training.by_step",
            "_args_": [],
            "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "_args_": [], "step_size": 2},
        },
        "drop_last": True,
    }
    with pytest.raises(TypeError, match="has no name to be known by"):
        training.Recipe(3, 8, lambda parameters: torch.optim.SGD(parameters)).describe()


def test_no_epochs_leave_the_network_alone() -> None:
    line = Line()
    assert training.fit(line, ones(4, 2), 0, CPU, "line") == training.History()
    assert line.layer.bias.item() == 0


def test_a_nan_loss_names_the_epoch() -> None:
    line = Line(act=lambda step, loss: loss * (torch.nan if step == 5 else 1))
    with pytest.raises(DivergedError, match=r"finetune diverged: the loss is nan in epoch 3; a smaller learning rate"):
        training.fit(line, ones(4, 2), 9, CPU, "finetune")


def test_an_infinite_weight_is_found_at_the_end() -> None:
    class Break(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.layer.weight.data.fill_(torch.inf)

    with pytest.raises(DivergedError, match="finetune diverged: a weight is not finite"):
        training.fit(Line(), ones(4, 2), 1, CPU, "finetune", [Break()])


def test_buffers_must_be_finite_and_whole_numbers_are() -> None:
    norm = nn.BatchNorm2d(2)
    training.require_finite(norm, "reset")
    training.require_finite(nn.Identity(), "reset")
    norm.running_var[1] = torch.nan
    with pytest.raises(DivergedError, match="reset diverged"):
        training.require_finite(norm, "reset")


def test_a_step_without_a_loss_is_skipped() -> None:
    first = Line(act=lambda step, loss: None if step else loss)
    assert training.fit(first, ones(4, 2), 1, CPU, "line").loss == [1.0]
    never = Line(act=lambda step, loss: None)
    assert training.fit(never, ones(4, 2), 1, CPU, "line").loss == []
    assert never.layer.bias.item() == 0


def test_an_interrupt_comes_through_and_the_next_one_too() -> None:
    def interrupt(step: int, loss: Tensor) -> Tensor:
        if step == 1:
            raise KeyboardInterrupt
        return loss

    before = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            training.fit(Line(act=interrupt), ones(4, 2), 3, CPU, "line")
        assert signal.getsignal(signal.SIGINT) is before


def test_nothing_outlives_its_fit_without_the_garbage_collector() -> None:
    held: list[weakref.ref[Any]] = []

    class Holder(Line):
        def configure_optimizers(self) -> Any:
            made = super().configure_optimizers()
            held.extend([weakref.ref(made["optimizer"]), weakref.ref(self), weakref.ref(self.layer)])
            return made

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1)

    gc.collect()
    gc.disable()
    try:
        line = Holder(scheduler=schedule)
        training.fit(line, ones(4, 2), 2, CPU, "line")
        assert [reference() is None for reference in held] == [True, False, False]
        del line
        assert [reference() is None for reference in held] == [True] * 3
    finally:
        gc.enable()


def test_an_error_of_a_stage_comes_through() -> None:
    def fail(step: int, loss: Tensor) -> Tensor:
        raise ZeroDivisionError(step)

    with pytest.raises(ZeroDivisionError):
        training.fit(Line(act=fail), ones(4, 2), 3, CPU, "line")


def test_the_module_is_left_on_the_device(monkeypatch) -> None:
    """Lightning moves it to the CPU at the end; on the CPU itself, its being placed is what can be seen."""
    placed = []
    monkeypatch.setattr(Numerics, "place", lambda self, module: placed.append((self.device, module)))
    line = Line()
    training.fit(line, ones(4, 2), 1, CPU, "line")
    assert placed == [(torch.device("cpu"), line)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_module_is_left_on_the_gpu() -> None:
    line = Line()
    data = ones(4, 2).data.to("cuda")
    history = training.fit(line, Batches(data, 2), 1, Numerics.resolve("cuda", "32-true"), "line")
    assert history.loss == pytest.approx([0.5])  # the bias goes from 0 to 1 in the first of two steps
    assert line.layer.weight.device.type == "cuda"


def test_one_cycle_moves_by_step() -> None:
    line = Line(scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1))
    training.fit(line, ones(10, 2), 4, CPU, "line")
    expected = torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD(Line().parameters(), lr=1), 0.1, total_steps=20)
    rates = []
    for _ in range(20):
        rates.append(expected.get_last_lr()[0])
        expected.optimizer.step()
        expected.step()
    assert line.rates == pytest.approx(rates)
    assert max(line.rates) == pytest.approx(0.1)


def test_other_schedules_move_by_epoch() -> None:
    line = Line(scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1))
    training.fit(line, ones(4, 2), 3, CPU, "line")
    assert line.rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005])


def test_a_plateau_is_one_of_the_mean_training_loss() -> None:
    """The loss falls in epochs 1 to 3 and then stands still; after two epochs without a fall the rate drops."""
    losses = iter([4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 3.0, 0.5, 1.0, 1.0, 1.0, 1.0])  # means: 3 1.5 1 1.75 1 1

    def told(step: int, loss: Tensor) -> Tensor:
        return loss * 0 + next(losses)

    line = Line(told, partial(torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.1, patience=1), lr=1.0)
    history = training.fit(line, ones(4, 2), 6, CPU, "line")
    assert history.loss == [3.0, 1.5, 1.0, 1.75, 1.0, 1.0]
    assert line.rates[::2] == pytest.approx([1, 1, 1, 1, 1, 0.1])


def test_a_schedulers_own_variables_are_nothing_to_a_fit(monkeypatch) -> None:
    """``srun --ntasks=4`` starts four sweeps, not one fit on four devices."""
    for name, value in {"NTASKS": "4", "JOB_NAME": "sweep", "JOB_ID": "1", "PROCID": "1", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert len(training.fit(Line(), ones(4, 2), 1, CPU, "line").loss) == 1


@pytest.mark.parametrize(
    ("count", "drop_last", "sizes"),
    [
        (8, False, [4, 4]),
        (10, False, [4, 4, 2]),
        (10, True, [4, 4]),
        (9, False, [4, 5]),  # BatchNorm over a single 1x1 map has no variance
        (9, True, [4, 4]),
        (3, True, [3]),
        (1, False, [1]),
    ],
)
def test_batches_merge_a_single_trailing_image(count: int, drop_last: bool, sizes: list[int]) -> None:
    data = ImageSet(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.arange(count))
    batches = Batches(data, 4, drop_last=drop_last)
    assert len(batches) == len(sizes)
    seen = [labels.tolist() for _, labels in batches]
    assert [len(labels) for labels in seen] == sizes
    assert [label for labels in seen for label in labels] == list(range(sum(sizes)))


def test_shuffled_batches_cover_everything_in_another_order_each_epoch() -> None:
    data = ImageSet(torch.zeros(9, 3, 1, 1, dtype=torch.uint8), torch.arange(9))
    batches = Batches(data, 4, torch.Generator().manual_seed(0))
    first, second = ([int(label) for _, labels in batches for label in labels] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": -1}, "recipe.epochs=-1: expected a whole number of at least 1"),
        ({"epochs": "two"}, "recipe.epochs=two: expected"),
        ({"batch_size": 0}, "recipe.batch_size=0: expected"),
        ({"epochs": True}, "recipe.epochs=True: expected"),
    ],
)
def test_a_recipe_that_trains_nothing_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training.Recipe(**{"epochs": 1, "batch_size": 2, "optimizer": torch.optim.SGD, **given})
