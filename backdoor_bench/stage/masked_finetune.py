"""UniBP, step 6: fine-tuning with the pruned entries frozen ("UniBP: Toward Universal Backdoor Purification via
Fine-Tuning", anonymous submission, Eq. 6)."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from backdoor_bench.stage.finetune import Finetune
from backdoor_bench.stage.output import Mask
from backdoor_bench.stage.view import DefenderView

BATCH_SIZES = {0.01: 32, 0.02: 32, 0.05: 64, 0.1: 128}


def batch_size_of(clean_ratio: float | None) -> int:
    """The paper's images per step (its A.5): 32, 32, 64, 128 for a clean ratio of 1, 2, 5, 10 %; 128 for any other.

    A tenth more or less is the same ratio: a draw by class rounds.
    """
    for ratio, size in BATCH_SIZES.items():
        if clean_ratio is not None and math.isclose(clean_ratio, ratio, rel_tol=0.1):
            return size
    return 128


class MaskedFinetune(Finetune):
    """:class:`Finetune` with a batch size that follows the clean ratio.

    Pruned entries keep the value that pruning gave them, noise included: the paper's Eq. 6 would multiply the noise
    of its Eq. 5 away again, and we follow Eq. 5 (prune with ``noise=0`` for the other reading).

    Args:
        batch_size: images per step; None: see :func:`batch_size_of`.
        training: as for :class:`Finetune`.
    """

    def __init__(self, batch_size: int | None = None, **training: Any) -> None:
        super().__init__(batch_size=batch_size_of(None) if batch_size is None else batch_size, **training)
        self.batch_size_by_ratio = batch_size is None

    def run(self, network: nn.Module, view: DefenderView, mask: Mask | None = None) -> None:
        if self.batch_size_by_ratio:
            self.batch_size = batch_size_of(view.clean_ratio)
        super().run(network, view, mask)
