"""The identity stage, for ablations: ``stage@defense.stages.prune=skip``."""

from __future__ import annotations

from typing import Any

from torch import nn

from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.view import DefenderView


class Skip(Stage):
    """Does nothing. Takes and ignores the options of the stage it stands for."""

    def __init__(self, **ignored: Any) -> None:
        super().__init__()

    def run(self, network: nn.Module, view: DefenderView) -> None:
        pass
