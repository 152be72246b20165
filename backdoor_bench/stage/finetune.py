"""Fine-tuning on the clean images; entries that a mask pruned stay as they are (Liu et al. 2018, arXiv:1805.12185)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from backdoor_bench.stage.base import TrainingStage
from backdoor_bench.stage.output import Mask
from backdoor_bench.stage.view import DefenderView


class FreezeEntries(Callback):
    """Keeps masked entries of a network's parameters at their value.

    Their gradients are zeroed, so that they move nothing else through a global norm, and their values written back
    after each step: weight decay and momentum move an entry without a gradient.
    """

    def __init__(self, network: nn.Module, mask: Mask) -> None:
        parameters = dict(network.named_parameters())
        self.frozen = [
            (parameters[name], entries, parameters[name].detach()[entries].clone())
            for name, entries in mask.pruned.items()
        ]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for parameter, entries, _values in self.frozen:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(entries, 0)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for parameter, entries, values in self.frozen:
            parameter.masked_scatter_(entries, values)


class Finetune(TrainingStage):
    """Cross-entropy over the clean images, all parameters, train mode. With a Mask its entries stay frozen.

    Args:
        masked: whether to obey the Mask of an earlier stage; False revives pruned entries.
    """

    def __init__(self, masked: bool = True, **training: Any) -> None:
        super().__init__(**training)
        self.masked = masked

    def run(self, network: nn.Module, view: DefenderView, mask: Mask | None = None) -> None:
        callbacks = [FreezeEntries(network, mask)] if self.masked and mask is not None else []
        self.train_network(network, view, callbacks=callbacks)
