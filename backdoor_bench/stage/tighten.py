"""UNIT, steps 4 and 5: tighten the bounds as far as the validation accuracy allows, and clip (Cheng et al., "UNIT:
Backdoor Mitigation via Automated Neural Distribution Tightening", ECCV 2024, Alg. 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench import progress
from backdoor_bench.dataset import Batches
from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.base import TrainingStage
from backdoor_bench.stage.bound import activation_moments, find_sites, fixed_augmentation, initial_bounds
from backdoor_bench.stage.clip import Clip, install
from backdoor_bench.stage.cost_controller import CostController
from backdoor_bench.stage.gradients import gradients_for
from backdoor_bench.stage.output import Bounds
from backdoor_bench.stage.validation import accuracy, tolerance, within
from backdoor_bench.stage.view import DefenderView
from backdoor_bench.training import MakeOptimizer


def penalty(bounds: Iterable[Tensor]) -> Tensor:
    """``R(sigma)``: the mean bound of each site, summed over the sites; a scalar.

    The authors' code; the paper's sum over all units would drown the cross-entropy. Negative bounds count as the 0
    that they clip at, so that a dead unit cannot buy a smaller R.
    """
    return torch.stack([bound.clamp(min=0).mean() for bound in bounds]).sum()


class Accept(Callback):
    """After each step: validation accuracy decides whether the bounds are kept, and what alpha becomes."""

    def __init__(self, stage: Tighten, clips: Mapping[str, Clip]) -> None:
        self.stage, self.clips = stage, clips
        self.best, self.best_penalty = self._now(), float(penalty(clip.bound for clip in clips.values()))
        self.best_accuracy: float | None = None
        self.accepted = 0

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage, view = self.stage, self.stage.view
        now = accuracy(stage.network, view.validation, view.numerics, stage.batch_size)
        kept = within(stage.accuracy_before, now, stage.tolerated)
        value = float(penalty(clip.bound for clip in self.clips.values()))
        if kept and value < self.best_penalty:
            self.best, self.best_penalty, self.best_accuracy = self._now(), value, now
            self.accepted += 1
        stage.controller.update(kept)

    def _now(self) -> dict[str, Tensor]:
        return {site: clip.bound.detach().clamp(min=0) for site, clip in self.clips.items()}


class Tighten(TrainingStage):
    """Minimise ``CE + alpha * R(sigma)`` over the bounds alone, and leave the network clipped by the best of them.

    Full batch: gradients are summed over micro-batches, one Adam step per pass. Eval mode throughout; no weight and no
    BatchNorm statistic moves. After each step the bounds are accepted if the validation accuracy (un-augmented images)
    fell by at most ``max(eps, 1 / |D_v|)`` and R is smaller than any accepted before. What is stored is what was
    validated (the authors' code stores the bounds before the step with the accuracy after it). Where nothing is
    accepted the initial bounds stay, with a warning.

    Without Bounds of an earlier stage it starts from ``mean + 4 * std`` of every activation unit.

    Args:
        steps: ``S``; 300 in the authors' code, 50 in the paper.
        batch_size: images per micro-batch; no effect on the result.
        optimizer: makes the optimiser of the bounds.
        eps: tolerated drop of the validation accuracy, a fraction; 0.02 in the paper, 0.03 in the authors' code.
        alpha: the initial weight of R.
        alpha_rule: ``code``: doubled after 5 steps in a row within the tolerance (set to its initial value if below
            it; the authors' next doubling comes after 4 steps, not 5), divided by 2^1.5 after 5 outside; ``paper``:
            doubled or halved at every step.
        augment: training images augmented once, as in the authors' code.
    """

    version = 2
    train_mode = False
    uses_validation = True

    def __init__(
        self,
        steps: int,
        batch_size: int,
        optimizer: MakeOptimizer,
        eps: float = 0.02,
        alpha: float = 1e-3,
        alpha_rule: Literal["code", "paper"] = "code",
        augment: bool = True,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(steps, batch_size, optimizer, inputs=inputs)
        if alpha_rule not in ("code", "paper"):
            raise ConfigError(f"alpha_rule={alpha_rule}: expected code or paper")
        if eps < 0 or alpha <= 0:
            raise ConfigError(f"eps={eps}, alpha={alpha}: expected a fraction of at least 0 and a positive weight")
        self.eps, self.alpha, self.alpha_rule, self.augment = eps, alpha, alpha_rule, augment
        # One optimiser step per pass, whatever the number of micro-batches.
        self.automatic_optimization = False

    def run(self, network: nn.Module, view: DefenderView, bounds: Bounds | None = None) -> Bounds:
        data = fixed_augmentation(view) if self.augment else view.train
        if bounds is None:
            moments = activation_moments(network, data, view.numerics, find_sites(network, images=view.example))
            bounds = Bounds(initial_bounds(moments, z=4.0))
        self.accuracy_before = accuracy(network, view.validation, view.numerics, self.batch_size)
        self.tolerated = tolerance(self.eps, len(view.validation))
        self.controller = controller(self.alpha, self.alpha_rule)
        self.images = len(data)
        clips = install(network, bounds.values)
        self.trained = [clip.bound for clip in clips.values()]
        accept = Accept(self, clips)
        before = accept.best_penalty
        with gradients_for(network, self.trained):
            self.train_network(network, view, callbacks=[accept], batches=Batches(data, self.batch_size))
        for site, bound in accept.best.items():
            clips[site].bound = bound
        if not accept.accepted:
            progress.say(f"{view.stage}: no bounds within a drop of {self.tolerated:.3f}; the initial ones are kept")
        report: dict[str, Any] = {"penalty_before": round(before, 6), "penalty": round(accept.best_penalty, 6)}
        report |= {"accuracy_before": self.accuracy_before, "accuracy": accept.best_accuracy}
        report |= {"tolerated_drop": self.tolerated, "accepted_steps": accept.accepted, "alpha": self.controller.cost}
        del self.trained
        return Bounds(accept.best, report=report)

    def trained_parameters(self) -> Sequence[Any]:
        return self.trained

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        stored, labels = batch
        logits = self.network(self.view.numerics.images(stored))
        loss = F.cross_entropy(logits, labels, reduction="sum") / self.images
        if self.trainer.is_last_batch:
            loss = loss + self.controller.cost * penalty(self.trained)
        self.manual_backward(loss)
        if self.trainer.is_last_batch:
            optimizer: Any = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()
        # The Watch averages over micro-batches; the loss is their sum.
        return loss.detach() * self.trainer.num_training_batches


def controller(alpha: float, rule: str) -> CostController:
    """What moves UNIT's alpha, by the authors' code or by the paper."""
    if rule == "paper":
        return CostController(alpha, patience=1, up=2.0, down=2.0)
    return CostController(alpha, floor=alpha)
