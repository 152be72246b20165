"""Grad-Prune, last stage: fine-tune on clean and triggered images together, with true labels (Dunnett, Arablouei,
Miller, Dedeoglu and Jurdak 2024, arXiv:2405.03918)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.dataset import Augmentation, Batches
from backdoor_bench.stage.finetune import Finetune, FreezeEntries
from backdoor_bench.stage.output import InvertedTrigger, Mask
from backdoor_bench.stage.view import DefenderView


class KeepBest(Callback):
    """Watches the clean cross-entropy on the validation images, in eval mode, before the first epoch and after each.

    Ends the fit after ``patience`` epochs without a new best; ``state`` is the ``state_dict`` of the best epoch, of
    the network as it came (epoch 0) where none was better.
    """

    def __init__(self, network: nn.Module, view: DefenderView, patience: int) -> None:
        self.network, self.view, self.patience = network, view, patience
        self.best, self.best_epoch, self.epochs = math.inf, 0, 0
        self.state: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs += 1
        self._look()
        if self.epochs - self.best_epoch >= self.patience:
            trainer.should_stop = True

    @torch.no_grad()
    def _look(self) -> None:
        view, total = self.view, torch.zeros((), device=self.view.device)
        self.network.eval()
        for stored, labels in Batches(view.validation, 500):
            with view.numerics.autocast():
                logits = self.network(view.numerics.images(stored))
            total += F.cross_entropy(logits.float(), labels, reduction="sum")
        self.network.train()
        loss = float(total) / len(view.validation)
        if loss < self.best:
            self.best, self.best_epoch = loss, self.epochs
            self.state = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}


class TriggerFinetune(Finetune):
    """Descend ``CE(f(x), y) + CE(f(x~), y)`` in every batch; leaves the best epoch's network, or as the authors' code
    does the one it was given, if no epoch was better.

    Two forwards, so BatchNorm learns from the clean and from the triggered batch, and one backward, which sums their
    gradients. Un-augmented, as in the authors' code; with a Mask its entries stay frozen (``masked=False`` lets them
    revive, as there).

    Args:
        patience: epochs without a smaller clean cross-entropy on validation before it ends.
        augment: augment the clean images as in training, before the trigger.
        training: as for :class:`Finetune`.
    """

    version = 2
    uses_validation = True

    def __init__(self, patience: int = 10, augment: bool = False, **training: Any) -> None:
        super().__init__(**training)
        self.patience, self.augment = patience, augment

    def run(  # type: ignore[override]
        self, network: nn.Module, view: DefenderView, trigger: InvertedTrigger, mask: Mask | None = None
    ) -> None:
        view = view if self.augment else replace(view, augmentation=Augmentation())
        keep = KeepBest(network, view, self.patience)
        callbacks: list[Callback] = [keep]
        if self.masked and mask is not None:
            callbacks.insert(0, FreezeEntries(network, mask))
        # In a tuple: a module of the attacker's or of an earlier stage is not part of what is trained.
        self._trigger = (trigger.trigger,)
        self.train_network(network, view, callbacks=callbacks)
        if keep.state is not None:
            network.load_state_dict(keep.state)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            poisoned = self._trigger[0](images)
        clean = F.cross_entropy(self.network(images), labels)
        return clean + F.cross_entropy(self.network(poisoned), labels)
