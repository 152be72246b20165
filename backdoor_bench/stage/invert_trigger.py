"""Trigger inversion and outlier detection of Neural Cleanse (Wang et al., "Neural Cleanse: Identifying and Mitigating
Backdoor Attacks in Neural Networks", IEEE S&P 2019), for many classes at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench import progress
from backdoor_bench.attack.base import Trigger
from backdoor_bench.dataset import Batches, ImageSet
from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.cost_controller import CostController
from backdoor_bench.stage.gradients import gradients_for
from backdoor_bench.stage.output import InvertedTrigger
from backdoor_bench.stage.view import DefenderView

IMPROVED = 0.99  # a best norm under this share of the one before counts as progress


def squash(raw: Tensor) -> Tensor:
    """Unbounded values to (0, 1): ``tanh(raw) / (2 + 1e-7) + 1/2``."""
    return raw.tanh() / (2 + 1e-7) + 0.5


def overlay(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """``(1 - m) x + m p`` for every trigger and image.

    Args:
        images: (B, 3, H, W) in [0, 1].
        masks: (G, 1, H, W) in [0, 1].
        patterns: (G, 3, H, W) in [0, 1].

    Returns:
        (G * B, 3, H, W), the first B of the first trigger.
    """
    masks, patterns = masks[:, None], patterns[:, None]
    return ((1 - masks) * images + masks * patterns).flatten(0, 1)


def mad_outliers(norms: Sequence[float], threshold: float = 2.0) -> tuple[float | None, list[int]]:
    """Anomaly index of the smallest norm, and the classes whose norms are abnormally small, smallest first.

    The index is ``|min - median| / (1.4826 * median |n - median|)``; a class is flagged if it lies under the median by
    more than ``threshold`` such deviations. Medians average the two middle values. Where all deviations are zero there
    is no index, and nothing is flagged.
    """
    values = torch.tensor(norms, dtype=torch.float64)
    middle = values.quantile(0.5)
    deviation = 1.4826 * (values - middle).abs().quantile(0.5)
    if deviation == 0:
        return None, []
    index = (middle - values) / deviation
    flagged = [label for label in values.argsort(stable=True).tolist() if index[label] > threshold]
    return float(index.max()), flagged


class MaskTrigger(Trigger):
    """``(1 - m) x + m p`` with a mask (1, H, W) and a pattern (3, H, W), both in [0, 1], kept as floats."""

    mask: Tensor
    pattern: Tensor

    def __init__(self, mask: Tensor, pattern: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("pattern", pattern)

    def paint(self, images: Tensor) -> Tensor:
        return overlay(images, self.mask[None], self.pattern[None])


@dataclass(frozen=True)
class ScannedTriggers(InvertedTrigger):
    """The triggers of all scanned classes; ``trigger`` and ``label`` are those of the most suspicious one.

    ``flagged``: the outliers, smallest mask first; ``norms``: ``||m||_1`` in pixels, by class.
    """

    triggers: Mapping[int, MaskTrigger] = field(default_factory=dict)
    norms: Mapping[int, float] = field(default_factory=dict)
    flagged: tuple[int, ...] = ()


class Search:
    """One class's state between epochs: its cost, its best mask so far, whether it is done."""

    def __init__(self, controller: CostController, threshold: float, patience: int, image_size: Sequence[int]) -> None:
        self.controller, self.threshold, self.patience = controller, threshold, patience
        height, width = image_size
        self.mask = torch.ones(1, height, width)
        self.pattern = torch.ones(3, height, width)
        self.best = math.inf
        self.kept: tuple[Tensor, Tensor] | None = None
        self._stalled, self._reference = 0, math.inf

    def after_epoch(self, success: float, norm: float) -> bool:
        """Take an epoch's mean success rate and mask norm; returns whether the class is done."""
        reached = success >= self.threshold
        if reached and norm < self.best:
            self.best = norm
            self.kept = squash(self.mask).detach(), squash(self.pattern).detach()
        if math.isfinite(self.best):
            self._stalled = self._stalled + 1 if self.best >= IMPROVED * self._reference else 0
        self._reference = min(self._reference, self.best)
        if self.controller.went_up and self.controller.went_down and self._stalled >= self.patience:
            return True
        self.controller.update(reached)
        return False

    def result(self) -> MaskTrigger:
        """The best mask; where the success rate was never reached, the last."""
        mask, pattern = self.kept or (squash(self.mask).detach(), squash(self.pattern).detach())
        return MaskTrigger(mask, pattern)


class InvertTrigger(Stage):
    """Find, for every class, the smallest mask and pattern that send clean images to it; the network is untouched.

    Classes are independent, so ``G`` of them are stacked and run as one batch of ``G * B`` images, in the same order
    of images each, and leave the stack when they are done; the grouping does not change the result. Kept is the mask
    at the end of the epoch with the smallest mean norm among those that reached ``success``; where none did, the last
    one (BackdoorBench keeps the first, which distorts the medians). Not flagged: the class with the smallest norm, and
    the report says ``flagged=False``. Eval mode; un-augmented images of all classes, as in the original code.

    Args:
        epochs: at most, of ``batch_size`` images per step.
        cost: the initial weight of ``||m||_1``, see :class:`CostController`.
        success: success rate that a mask must reach.
        patience: epochs in a row with the same answer before the cost changes.
        stop_patience: epochs without progress (1 %) before a class is done, if its cost went both up and down.
        lr, betas: of Adam.
        threshold: anomaly index above which a class is flagged.
        max_images: images used, drawn at random; None: all.
        images_at_once: ``G * B`` is at most this (memory; one class always runs).
        min_steps: steps per epoch at least, by going over few images repeatedly; 10 is what 5 % of CIFAR-10 gives.
        augment: augment batches as in training (BackdoorBench).
    """

    def __init__(
        self,
        epochs: int,
        batch_size: int = 256,
        cost: float = 1e-3,
        success: float = 0.98,
        patience: int = 5,
        stop_patience: int = 25,
        lr: float = 0.1,
        betas: Sequence[float] = (0.5, 0.9),
        threshold: float = 2.0,
        max_images: int | None = None,
        images_at_once: int = 2560,
        min_steps: int = 1,
        augment: bool = False,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(inputs)
        for name, value in (("epochs", epochs), ("batch_size", batch_size), ("max_images", max_images)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: expected 1 or more")
        self.epochs, self.batch_size, self.cost, self.success = epochs, batch_size, cost, success
        self.patience, self.stop_patience, self.lr, self.betas = patience, stop_patience, lr, (betas[0], betas[1])
        self.threshold, self.max_images, self.images_at_once = threshold, max_images, images_at_once
        self.min_steps, self.augment = min_steps, augment

    def run(self, network: nn.Module, view: DefenderView) -> ScannedTriggers:
        data = view.train
        if self.max_images is not None and self.max_images < len(data):
            chosen = torch.randperm(len(data), generator=view.generator("subset"))[: self.max_images]
            data = data[chosen.to(data.labels.device)]
        group = max(1, self.images_at_once // min(self.batch_size, len(data)))
        searches: dict[int, Search] = {}
        labels = list(range(view.num_classes))
        rounds = math.ceil(len(labels) / group) * self.epochs
        steps = 0
        with progress.track(view.stage or "invert triggers", rounds) as advance, gradients_for(network, []):
            for start in range(0, len(labels), group):
                part, taken = self._scan(network, view, data, labels[start : start + group], advance)
                searches |= part
                steps = max(steps, taken)
        return self._judge(network, view, searches, steps)

    def _scan(
        self, network: nn.Module, view: DefenderView, data: ImageSet, labels: list[int], advance: progress.Advance
    ) -> tuple[dict[int, Search], int]:
        """Invert a group of classes together; returns their states and the steps of the longest."""
        size = data.images.shape[2:]
        searches = {
            label: Search(CostController(self.cost, self.patience), self.success, self.stop_patience, size)
            for label in labels
        }
        for search in searches.values():
            search.mask = search.mask.to(view.device).requires_grad_()
            search.pattern = search.pattern.to(view.device).requires_grad_()
        # A class that is done has no gradient, and Adam passes over what has none.
        tensors = [tensor for search in searches.values() for tensor in (search.mask, search.pattern)]
        optimizer = torch.optim.Adam(tensors, lr=self.lr, betas=self.betas)
        # The same names for every group, so that each class sees the same batches however they are grouped.
        batches = Batches(data, self.batch_size, view.generator("order"))
        draws = view.generator("augmentation", view.device)
        active, steps = dict(searches), 0
        for epoch in range(self.epochs):
            if not active:
                advance("")
                continue
            seen: list[Tensor] = []
            for _ in range(math.ceil(self.min_steps / len(batches))):
                for stored, _labels in batches:
                    images = view.numerics.images(stored)
                    images = view.augmentation(images, draws) if self.augment else images
                    seen.append(self._step(network, view, images, active, optimizer))
            steps += len(seen)
            success, norms = torch.stack(seen).mean(0).tolist()
            done = [
                label
                for (label, search), s, n in zip(active.items(), success, norms, strict=True)
                if search.after_epoch(s, n)
            ]
            active = {label: search for label, search in active.items() if label not in done}
            advance(f"{len(active)} classes, epoch {epoch + 1}")
        return searches, steps

    def _step(
        self,
        network: nn.Module,
        view: DefenderView,
        images: Tensor,
        active: Mapping[int, Search],
        optimizer: torch.optim.Optimizer,
    ) -> Tensor:
        """One Adam step of all active classes: (2, classes), success rates and mask norms before the step."""
        masks = squash(torch.stack([search.mask for search in active.values()]))
        patterns = squash(torch.stack([search.pattern for search in active.values()]))
        costs = torch.tensor([search.controller.cost for search in active.values()]).to(view.device, non_blocking=True)
        targets = torch.tensor(list(active)).to(view.device, non_blocking=True).repeat_interleave(len(images))
        triggered = overlay(images, masks, patterns).contiguous(memory_format=view.numerics.memory_format)
        with view.numerics.autocast():
            logits = network(triggered)
        losses = F.cross_entropy(logits.float(), targets, reduction="none").view(len(active), -1).mean(1)
        norms = masks.flatten(1).sum(1)
        # The classes share nothing, so the gradient of the sum is each one's own.
        (losses + costs * norms).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        success = (logits.argmax(1) == targets).view(len(active), -1).float().mean(1)
        return torch.stack([success, norms]).detach()

    def _judge(
        self, network: nn.Module, view: DefenderView, searches: Mapping[int, Search], steps: int
    ) -> ScannedTriggers:
        triggers = {label: search.result() for label, search in searches.items()}
        norms = {label: float(trigger.mask.sum()) for label, trigger in triggers.items()}
        index, flagged = mad_outliers(list(norms.values()), self.threshold)
        label = flagged[0] if flagged else min(norms, key=norms.__getitem__)
        held_out = view.validation if len(view.validation) else view.train
        report: dict[str, Any] = {"label": label, "flagged": bool(flagged), "anomaly_index": index}
        report["flagged_classes"] = " ".join(map(str, flagged))
        report["success_rate"] = success_rate(network, view, triggers[label], held_out, label)
        report["converged_classes"] = sum(search.kept is not None for search in searches.values())
        report |= {"steps": steps, **{f"norm_{c}": round(norm, 3) for c, norm in norms.items()}}
        if index is None:
            progress.say(f"{view.stage}: all mask norms are alike, so no class can be told apart; not detected")
        return ScannedTriggers(
            triggers[label], label, triggers=triggers, norms=norms, flagged=tuple(flagged), report=report
        )


@torch.no_grad()
def success_rate(network: nn.Module, view: DefenderView, trigger: Trigger, data: ImageSet, label: int) -> float | None:
    """The share of images of other classes that the trigger sends to ``label``; None if there are none."""
    others = data[data.labels != label]
    if not len(others):
        return None
    hits = torch.zeros((), device=view.device)
    for stored, _ in Batches(others, 500):
        images = trigger(view.numerics.images(stored))
        with view.numerics.autocast():
            hits += (network(images).argmax(1) == label).sum()
    return round(float(hits)) / len(others)
