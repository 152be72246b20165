"""Clean unlearning: gradient ascent on the clean images until a copy of the network has forgotten its task (Lin et al.,
"Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and Backdoor Activeness",
NeurIPS 2024, stage 1)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.dataset import Batches
from backdoor_bench.errors import ConfigError
from backdoor_bench.stage.base import TrainingStage
from backdoor_bench.stage.output import Reference
from backdoor_bench.stage.view import DefenderView


class StopWhenForgotten(Callback):
    """Ends a fit after the epoch in which the eval-mode accuracy on the clean training images is at most ``accuracy``.

    The images are augmented as in training, as the authors' check does; ``measured`` is the last accuracy.
    """

    def __init__(self, network: nn.Module, view: DefenderView, accuracy: float) -> None:
        self.network, self.view, self.accuracy = network, view, accuracy
        self.draws = view.generator("forgotten", view.device)
        self.measured: float | None = None
        self.epochs = 0

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        view, correct = self.view, torch.zeros((), device=self.view.device)
        self.network.eval()
        for stored, labels in Batches(view.train, 500):
            with view.numerics.autocast():
                logits = self.network(view.augmentation(view.numerics.images(stored), self.draws))
            correct += (logits.argmax(1) == labels).sum()
        self.network.train()
        self.epochs += 1
        self.measured = float(correct) / len(view.train)
        if self.measured <= self.accuracy:
            trainer.should_stop = True


class Unlearn(TrainingStage):
    """A copy of the network, trained to *maximise* the cross-entropy of the clean images; the network is untouched.

    All parameters, train mode, one fixed random order of the images in every epoch (the authors do not shuffle).

    Args:
        stop_accuracy: stop after the first epoch with at most this accuracy on the clean training images, a fraction.
            Kept at 0.1 for any number of classes, as published.
        shuffle: a new order in each epoch.
        training: ``epochs`` (at most), ``batch_size``, ``optimizer``, ``scheduler``.
    """

    def __init__(self, stop_accuracy: float = 0.1, shuffle: bool = False, **training: Any) -> None:
        super().__init__(**training)
        if not 0 <= stop_accuracy < 1:
            raise ConfigError(f"stop_accuracy={stop_accuracy}: expected a fraction in [0, 1)")
        self.stop_accuracy, self.shuffle = stop_accuracy, shuffle

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return -F.cross_entropy(self.network(images), labels)

    def run(self, network: nn.Module, view: DefenderView) -> Reference:
        twin = copy.deepcopy(network)
        stop = StopWhenForgotten(twin, view, self.stop_accuracy)
        # The view's images lie sorted by class: an order of our own, or a batch would hold one class.
        order = view.generator("order")
        data = view.train[torch.randperm(len(view.train), generator=order).to(view.train.labels.device)]
        batches = Batches(data, self.batch_size, order if self.shuffle else None)
        self.train_network(twin, view, callbacks=[stop], batches=batches)
        forgotten = stop.measured is not None and stop.measured <= self.stop_accuracy
        return Reference(twin, report={"epochs": stop.epochs, "accuracy": stop.measured, "forgotten": forgotten})
